// Matrices of 8-bit and 4-bit weights (Q8_0, Q4_0) on processors with VNNI, compiled into llama.cpp's repack.cpp.
//
// VNNI multiplies four unsigned bytes with four signed ones and adds them up, in each lane of a register. llama.cpp
// multiplies Q8_0 row by row: each weight is loaded again for every few tokens, and two signed numbers have to become
// an unsigned and a signed one first. Here the weights are laid out anew when the model is loaded:
//
// - 16 rows of the matrix are a group. A step holds 4 neighbouring weights of each of them, so that one instruction
//   multiplies 4 activations, repeated over the register, with 16 rows at once, and no sum across lanes is needed.
// - Weights are stored plus an offset, unsigned. The offset times the sum of a block's activations is where the sum
//   begins, negative.
// - A group's scales lie behind its weights, so that loads of weights do not straddle cache lines.
//
// Four tokens or one go through the weights together. Each result is summed in the same order in both cases, so the
// scores of a text do not depend, to the last bit, on who else is computed at the time.
//
// Interface (gemm, gemv, repack) and the layout of the activations are those of the file that includes this one.

#include "vectors.h"

#if defined(MINI_CLAUDE_KERNELS)

namespace mini_claude {

constexpr int ROWS_OF_GROUP = 16;                             // rows of the weight matrix = columns of the result
constexpr int WIDTH_OF_BLOCK = QK8_0;                         // 32 weights of a row, or activations, have one scale
constexpr int WIDTH_OF_STEP = 4;                              // weights of a row that one instruction takes
constexpr int STEPS_OF_BLOCK = WIDTH_OF_BLOCK / WIDTH_OF_STEP;
constexpr int BYTES_OF_STEP = ROWS_OF_GROUP * WIDTH_OF_STEP;  // 64, unpacked

// Weights of 8 bits, -128 to 127: a byte each.
struct EightBits {
    using Block = block_q8_0;
    static constexpr int OFFSET = 128;
    static constexpr int BYTES_OF_BLOCK = STEPS_OF_BLOCK * BYTES_OF_STEP;

    static Ints step(const uint8_t * block, int k) { return load(block + k * BYTES_OF_STEP); }
    static int weight(const Block & block, int i) { return block.qs[i]; }
    static void put(uint8_t * block, int k, int at, int unsigned_weight) {
        block[k * BYTES_OF_STEP + at] = (uint8_t) unsigned_weight;
    }
};

// Weights of 4 bits, -8 to 7: two steps share their bytes.
struct FourBits {
    using Block = block_q4_0;
    static constexpr int OFFSET = 8;
    static constexpr int BYTES_OF_BLOCK = STEPS_OF_BLOCK * BYTES_OF_STEP / 2;

    static Ints step(const uint8_t * block, int k) {
        const Ints both = load(block + k / 2 * BYTES_OF_STEP);
        return k % 2 ? high_nibbles(both) : low_nibbles(both);
    }
    static int weight(const Block & block, int i) {
        return (i < WIDTH_OF_BLOCK / 2 ? block.qs[i] & 0x0f : block.qs[i - WIDTH_OF_BLOCK / 2] >> 4) - OFFSET;
    }
    static void put(uint8_t * block, int k, int at, int unsigned_weight) {
        uint8_t & both = block[k / 2 * BYTES_OF_STEP + at];
        both = (uint8_t) (k % 2 ? both | unsigned_weight << 4 : unsigned_weight);
    }
};

// What all columns of a result need to know of one block of one token.
struct BlockOfToken {
    int32_t first;  // -OFFSET * (sum of its activations)
    float scale;
};

// One token (block_q8_0).
struct SingleToken {
    static constexpr int NUM = 1;
    const block_q8_0 * blocks;

    ggml_fp16_t scale(int, int i) const { return blocks[i].d; }
    const int8_t * step(int, int i, int k) const { return blocks[i].qs + WIDTH_OF_STEP * k; }
};

// Four tokens whose activations are interleaved by eight (block_q8_0x4).
struct InterleavedTokens {
    static constexpr int NUM = 4;
    const block_q8_0x4 * blocks;

    ggml_fp16_t scale(int token, int i) const { return blocks[i].d[token]; }
    const int8_t * step(int token, int i, int k) const {
        return blocks[i].qs + (k / 2) * 32 + token * 8 + (k % 2) * WIDTH_OF_STEP;
    }
};

static inline int32_t four_bytes(const int8_t * p) {
    int32_t value;
    memcpy(&value, p, sizeof(value));
    return value;
}

template <typename Tokens> static void prepare(const Tokens & tokens, int num_blocks, int offset, BlockOfToken * out) {
    for (int i = 0; i < num_blocks; i++) {
        for (int t = 0; t < Tokens::NUM; t++) {
            int sum = 0;
            for (int k = 0; k < STEPS_OF_BLOCK; k++) {
                const int8_t * a = tokens.step(t, i, k);
                sum += a[0] + a[1] + a[2] + a[3];
            }
            out[i * Tokens::NUM + t] = {-offset * sum, GGML_CPU_FP16_TO_FP32(tokens.scale(t, i))};
        }
    }
}

// The products of `Tokens::NUM` tokens and `VECTORS * LANES` rows of weights. Vector v's weights begin at `weights[v]`,
// its scales at `scales[v]`, its results are stored at `out + v * LANES`, `stride` floats from token to token.
template <typename Weights, typename Tokens, int VECTORS>
static inline void tile(const Tokens & tokens, const BlockOfToken * prepared, int num_blocks,
                        const uint8_t * const * weights, const ggml_fp16_t * const * scales, float * out, size_t stride) {
    Floats result[Tokens::NUM][VECTORS];
    for (int t = 0; t < Tokens::NUM; t++) {
        for (int v = 0; v < VECTORS; v++) {
            result[t][v] = repeat(0.0f);
        }
    }
    for (int i = 0; i < num_blocks; i++) {
        const BlockOfToken * block = prepared + i * Tokens::NUM;
        Ints sum[Tokens::NUM][VECTORS];
        for (int t = 0; t < Tokens::NUM; t++) {
            for (int v = 0; v < VECTORS; v++) {
                sum[t][v] = repeat(block[t].first);
            }
        }
#pragma GCC unroll 8
        for (int k = 0; k < STEPS_OF_BLOCK; k++) {
            Ints w[VECTORS];
            for (int v = 0; v < VECTORS; v++) {
                w[v] = Weights::step(weights[v] + i * Weights::BYTES_OF_BLOCK, k);
            }
            for (int t = 0; t < Tokens::NUM; t++) {
                const Ints a = repeat(four_bytes(tokens.step(t, i, k)));
                for (int v = 0; v < VECTORS; v++) {
                    sum[t][v] = add_products(sum[t][v], w[v], a);
                }
            }
        }
        for (int v = 0; v < VECTORS; v++) {
            const Floats scale = load_halves(scales[v] + i * ROWS_OF_GROUP);
            for (int t = 0; t < Tokens::NUM; t++) {
                const Floats both = multiply(scale, repeat(block[t].scale));
                result[t][v] = multiply_add(to_floats(sum[t][v]), both, result[t][v]);
            }
        }
    }
    for (int t = 0; t < Tokens::NUM; t++) {
        for (int v = 0; v < VECTORS; v++) {
            store(out + t * stride + v * LANES, result[t][v]);
        }
    }
}

// All tokens with all of `num_rows` rows of weights; `out` is [tokens, num_rows], `stride` floats from token to token.
// `sets` are num_sets times Tokens; weights are the outer loop, so that each is read from memory once.
template <typename Weights, typename Tokens>
static void multiply_all(const Tokens * sets, int num_sets, int num_blocks, const void * weights, int num_rows,
                         float * out, size_t stride) {
    static thread_local std::vector<BlockOfToken> prepared;
    prepared.resize((size_t) num_sets * num_blocks * Tokens::NUM);
    for (int s = 0; s < num_sets; s++) {
        prepare(sets[s], num_blocks, Weights::OFFSET, prepared.data() + (size_t) s * num_blocks * Tokens::NUM);
    }
    constexpr int VECTORS = 2;
    const size_t bytes_of_group = num_blocks * sizeof(typename Weights::Block) * ROWS_OF_GROUP;
    for (int row = 0; row < num_rows; row += VECTORS * LANES) {
        const int num_vectors = MIN(VECTORS, (num_rows - row) / LANES);
        const uint8_t * of_weights[VECTORS];
        const ggml_fp16_t * of_scales[VECTORS];
        for (int v = 0; v < num_vectors; v++) {
            const int first = row + v * LANES;
            const uint8_t * group = (const uint8_t *) weights + (first / ROWS_OF_GROUP) * bytes_of_group;
            of_weights[v] = group + (first % ROWS_OF_GROUP) * WIDTH_OF_STEP;
            of_scales[v] = (const ggml_fp16_t *) (group + num_blocks * Weights::BYTES_OF_BLOCK) + first % ROWS_OF_GROUP;
        }
        for (int s = 0; s < num_sets; s++) {
            const BlockOfToken * of_tokens = prepared.data() + (size_t) s * num_blocks * Tokens::NUM;
            float * to = out + (size_t) s * Tokens::NUM * stride + row;
            if (num_vectors == VECTORS) {
                tile<Weights, Tokens, VECTORS>(sets[s], of_tokens, num_blocks, of_weights, of_scales, to, stride);
            } else {
                tile<Weights, Tokens, 1>(sets[s], of_tokens, num_blocks, of_weights, of_scales, to, stride);
            }
        }
    }
}

template <typename Weights> static int lay_out(struct ggml_tensor * t, const void * data, size_t data_size) {
    using Block = typename Weights::Block;
    static_assert(ROWS_OF_GROUP * (sizeof(Block) - sizeof(ggml_fp16_t)) == Weights::BYTES_OF_BLOCK, "padding");
    GGML_ASSERT(t->ne[1] % ROWS_OF_GROUP == 0 && data_size == ggml_nbytes(t));
    const int64_t num_blocks = t->ne[0] / WIDTH_OF_BLOCK;
    const int64_t num_groups = ggml_nrows(t) / ROWS_OF_GROUP;
    const Block * from = (const Block *) data;
    uint8_t * to = (uint8_t *) t->data;
    for (int64_t g = 0; g < num_groups; g++) {
        ggml_fp16_t * scales = (ggml_fp16_t *) (to + num_blocks * Weights::BYTES_OF_BLOCK);
        for (int64_t i = 0; i < num_blocks; i++) {
            for (int row = 0; row < ROWS_OF_GROUP; row++) {
                const Block & block = from[row * num_blocks + i];
                scales[i * ROWS_OF_GROUP + row] = block.d;
                for (int j = 0; j < WIDTH_OF_BLOCK; j++) {
                    const int at = row * WIDTH_OF_STEP + j % WIDTH_OF_STEP;
                    Weights::put(to + i * Weights::BYTES_OF_BLOCK, j / WIDTH_OF_STEP, at,
                                 Weights::weight(block, j) + Weights::OFFSET);
                }
            }
        }
        from += ROWS_OF_GROUP * num_blocks;
        to += ROWS_OF_GROUP * num_blocks * sizeof(Block);
    }
    return 0;
}

template <typename Weights>
static void several_tokens(int n, float * s, size_t bs, const void * vx, const void * vy, int nr, int nc) {
    const int num_blocks = n / WIDTH_OF_BLOCK;
    static thread_local std::vector<InterleavedTokens> sets;
    sets.resize(nr / InterleavedTokens::NUM);
    for (size_t i = 0; i < sets.size(); i++) {
        sets[i].blocks = (const block_q8_0x4 *) vy + i * num_blocks;
    }
    multiply_all<Weights>(sets.data(), (int) sets.size(), num_blocks, vx, nc, s, bs);
}

template <typename Weights> static void one_token(int n, float * s, const void * vx, const void * vy, int nc) {
    const SingleToken token = {(const block_q8_0 *) vy};
    multiply_all<Weights>(&token, 1, n / WIDTH_OF_BLOCK, vx, nc, s, 0);
}

}  // namespace mini_claude

#define MINI_CLAUDE_INSTANCE(BLOCK, WEIGHTS) \
    template <> int repack<BLOCK, 8, 16>(struct ggml_tensor * t, const void * data, size_t data_size) { \
        return mini_claude::lay_out<mini_claude::WEIGHTS>(t, data, data_size); \
    } \
    template <> \
    void gemm<BLOCK, 8, 16, GGML_TYPE_Q8_0>(int n, float * s, size_t bs, const void * vx, const void * vy, int nr, \
                                            int nc) { \
        mini_claude::several_tokens<mini_claude::WEIGHTS>(n, s, bs, vx, vy, nr, nc); \
    } \
    template <> \
    void gemv<BLOCK, 8, 16, GGML_TYPE_Q8_0>(int n, float * s, size_t, const void * vx, const void * vy, int, int nc) { \
        mini_claude::one_token<mini_claude::WEIGHTS>(n, s, vx, vy, nc); \
    }

MINI_CLAUDE_INSTANCE(block_q8_0, EightBits)
MINI_CLAUDE_INSTANCE(block_q4_0, FourBits)
#undef MINI_CLAUDE_INSTANCE

#endif
