// Matrices of 8-bit weights (Q8_0) on processors with VNNI, compiled into llama.cpp's repack.cpp.
//
// llama.cpp multiplies Q8_0 row by row: each weight is loaded again for every few tokens, and two signed numbers have
// to be turned into an unsigned and a signed one first, because that is what VNNI's instruction multiplies. Here the
// weights are laid out anew when the model is loaded:
//
// - 16 rows of the matrix are a group. 64 bytes hold 4 neighbouring weights of each of them, so that one instruction
//   multiplies 4 activations, repeated over the register, with 16 rows at once, and no sum across lanes is needed.
// - Weights are stored plus 128, unsigned. 128 * (sum of a block's activations) is where the sum begins, negative.
// - A group's scales lie behind its weights, so that loads of weights do not straddle cache lines.
//
// Four tokens or one go through the weights together. Each result is summed in the same order in both cases, so the
// scores of a text do not depend, to the last bit, on who else is computed at the time.
//
// Interface (gemm, gemv, repack) and the layout of the activations are those of the file that includes this one.

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__) || defined(MINI_CLAUDE_VECTORS)
#define MINI_CLAUDE_Q8_0 1

namespace mini_claude {

constexpr int ROWS_OF_GROUP = 16;                                 // rows of the weight matrix = columns of the result
constexpr int WIDTH_OF_STEP = 4;                                  // weights of a row that one instruction takes
constexpr int STEPS_OF_BLOCK = QK8_0 / WIDTH_OF_STEP;             // 8
constexpr int BYTES_OF_STEP = ROWS_OF_GROUP * WIDTH_OF_STEP;      // 64
constexpr int BYTES_OF_BLOCK = STEPS_OF_BLOCK * BYTES_OF_STEP;    // 512

#if defined(MINI_CLAUDE_VECTORS)  // a test brings vectors of its own, for processors without VNNI
#include MINI_CLAUDE_VECTORS
#elif defined(__AVX512VNNI__)
using Ints = __m512i;
using Floats = __m512;
static inline Ints load(const uint8_t * p) { return _mm512_loadu_si512((const void *) p); }
static inline Ints repeat(int32_t x) { return _mm512_set1_epi32(x); }
static inline Floats repeat(float x) { return _mm512_set1_ps(x); }
static inline Ints add_products(Ints sum, Ints weights, Ints tokens) {
    return _mm512_dpbusd_epi32(sum, weights, tokens);
}
static inline Floats to_floats(Ints x) { return _mm512_cvtepi32_ps(x); }
static inline Floats load_scales(const ggml_half * p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *) p));
}
static inline Floats multiply(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
static inline Floats multiply_add(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
static inline void store(float * p, Floats x) { _mm512_storeu_ps(p, x); }
#else
using Ints = __m256i;
using Floats = __m256;
static inline Ints load(const uint8_t * p) { return _mm256_loadu_si256((const __m256i *) p); }
static inline Ints repeat(int32_t x) { return _mm256_set1_epi32(x); }
static inline Floats repeat(float x) { return _mm256_set1_ps(x); }
static inline Ints add_products(Ints sum, Ints weights, Ints tokens) {
    return _mm256_dpbusd_avx_epi32(sum, weights, tokens);
}
static inline Floats to_floats(Ints x) { return _mm256_cvtepi32_ps(x); }
static inline Floats load_scales(const ggml_half * p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) p)); }
static inline Floats multiply(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
static inline Floats multiply_add(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
static inline void store(float * p, Floats x) { _mm256_storeu_ps(p, x); }
#endif

constexpr int LANES = sizeof(Floats) / sizeof(float);

// What all columns of a result need to know of one block of one token.
struct BlockOfToken {
    int32_t first;  // -128 * (sum of its 32 activations)
    float scale;
};

// One token (block_q8_0).
struct SingleToken {
    static constexpr int NUM = 1;
    const block_q8_0 * blocks;

    ggml_half scale(int, int i) const { return blocks[i].d; }
    const int8_t * step(int, int i, int k) const { return blocks[i].qs + WIDTH_OF_STEP * k; }
};

// Four tokens whose activations are interleaved by eight (block_q8_0x4).
struct InterleavedTokens {
    static constexpr int NUM = 4;
    const block_q8_0x4 * blocks;

    ggml_half scale(int token, int i) const { return blocks[i].d[token]; }
    const int8_t * step(int token, int i, int k) const {
        return blocks[i].qs + (k / 2) * 32 + token * 8 + (k % 2) * WIDTH_OF_STEP;
    }
};

static inline int32_t four_bytes(const int8_t * p) {
    int32_t value;
    memcpy(&value, p, sizeof(value));
    return value;
}

template <typename Tokens> static void prepare(const Tokens & tokens, int num_blocks, BlockOfToken * out) {
    for (int i = 0; i < num_blocks; i++) {
        for (int t = 0; t < Tokens::NUM; t++) {
            int sum = 0;
            for (int k = 0; k < STEPS_OF_BLOCK; k++) {
                const int8_t * a = tokens.step(t, i, k);
                sum += a[0] + a[1] + a[2] + a[3];
            }
            out[i * Tokens::NUM + t] = {-128 * sum, GGML_CPU_FP16_TO_FP32(tokens.scale(t, i))};
        }
    }
}

// The products of `Tokens::NUM` tokens and `VECTORS * LANES` rows of weights. Vector v's weights begin at `weights[v]`,
// its scales at `scales[v]`, its results are stored at `out + v * LANES`, `stride` floats from token to token.
template <typename Tokens, int VECTORS>
static inline void tile(const Tokens & tokens, const BlockOfToken * prepared, int num_blocks,
                        const uint8_t * const * weights, const ggml_half * const * scales, float * out, size_t stride) {
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
                w[v] = load(weights[v] + i * BYTES_OF_BLOCK + k * BYTES_OF_STEP);
            }
            for (int t = 0; t < Tokens::NUM; t++) {
                const Ints a = repeat(four_bytes(tokens.step(t, i, k)));
                for (int v = 0; v < VECTORS; v++) {
                    sum[t][v] = add_products(sum[t][v], w[v], a);
                }
            }
        }
        for (int v = 0; v < VECTORS; v++) {
            const Floats scale = load_scales(scales[v] + i * ROWS_OF_GROUP);
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
template <typename Tokens>
static void multiply_all(const Tokens * sets, int num_sets, int num_blocks, const void * weights, int num_rows,
                         float * out, size_t stride) {
    static thread_local std::vector<BlockOfToken> prepared;
    prepared.resize((size_t) num_sets * num_blocks * Tokens::NUM);
    for (int s = 0; s < num_sets; s++) {
        prepare(sets[s], num_blocks, prepared.data() + (size_t) s * num_blocks * Tokens::NUM);
    }
    constexpr int VECTORS = 2;
    const size_t bytes_of_group = (size_t) num_blocks * (BYTES_OF_BLOCK + ROWS_OF_GROUP * sizeof(ggml_half));
    for (int row = 0; row < num_rows; row += VECTORS * LANES) {
        const int num_vectors = MIN(VECTORS, (num_rows - row) / LANES);
        const uint8_t * of_weights[VECTORS];
        const ggml_half * of_scales[VECTORS];
        for (int v = 0; v < num_vectors; v++) {
            const int first = row + v * LANES;
            const uint8_t * group = (const uint8_t *) weights + (first / ROWS_OF_GROUP) * bytes_of_group;
            of_weights[v] = group + (first % ROWS_OF_GROUP) * WIDTH_OF_STEP;
            of_scales[v] = (const ggml_half *) (group + (size_t) num_blocks * BYTES_OF_BLOCK) + first % ROWS_OF_GROUP;
        }
        for (int s = 0; s < num_sets; s++) {
            const BlockOfToken * of_tokens = prepared.data() + (size_t) s * num_blocks * Tokens::NUM;
            float * to = out + (size_t) s * Tokens::NUM * stride + row;
            if (num_vectors == VECTORS) {
                tile<Tokens, VECTORS>(sets[s], of_tokens, num_blocks, of_weights, of_scales, to, stride);
            } else {
                tile<Tokens, 1>(sets[s], of_tokens, num_blocks, of_weights, of_scales, to, stride);
            }
        }
    }
}

}  // namespace mini_claude

template <> int repack<block_q8_0, 8, 16>(struct ggml_tensor * t, const void * data, size_t data_size) {
    using namespace mini_claude;
    const int64_t num_blocks = t->ne[0] / QK8_0;
    const int64_t num_groups = ggml_nrows(t) / ROWS_OF_GROUP;
    GGML_ASSERT(t->type == GGML_TYPE_Q8_0 && t->ne[1] % ROWS_OF_GROUP == 0);
    GGML_ASSERT(data_size == ggml_nbytes(t));
    const block_q8_0 * from = (const block_q8_0 *) data;
    uint8_t * to = (uint8_t *) t->data;
    for (int64_t g = 0; g < num_groups; g++) {
        uint8_t * weights = to;
        ggml_half * scales = (ggml_half *) (to + num_blocks * BYTES_OF_BLOCK);
        for (int64_t i = 0; i < num_blocks; i++) {
            for (int row = 0; row < ROWS_OF_GROUP; row++) {
                const block_q8_0 & block = from[row * num_blocks + i];
                scales[i * ROWS_OF_GROUP + row] = block.d;
                for (int j = 0; j < QK8_0; j++) {
                    const int k = j / WIDTH_OF_STEP;
                    weights[i * BYTES_OF_BLOCK + k * BYTES_OF_STEP + row * WIDTH_OF_STEP + j % WIDTH_OF_STEP] =
                        (uint8_t) block.qs[j] ^ 0x80;
                }
            }
        }
        from += ROWS_OF_GROUP * num_blocks;
        to += num_blocks * (BYTES_OF_BLOCK + ROWS_OF_GROUP * (int64_t) sizeof(ggml_half));
    }
    return 0;
}

template <>
void gemm<block_q8_0, 8, 16, GGML_TYPE_Q8_0>(int n, float * s, size_t bs, const void * vx, const void * vy, int nr,
                                             int nc) {
    using namespace mini_claude;
    const int num_blocks = n / QK8_0;
    static thread_local std::vector<InterleavedTokens> sets;
    sets.resize(nr / InterleavedTokens::NUM);
    for (size_t i = 0; i < sets.size(); i++) {
        sets[i].blocks = (const block_q8_0x4 *) vy + i * num_blocks;
    }
    multiply_all(sets.data(), (int) sets.size(), num_blocks, vx, nc, s, bs);
}

template <>
void gemv<block_q8_0, 8, 16, GGML_TYPE_Q8_0>(int n, float * s, size_t, const void * vx, const void * vy, int, int nc) {
    using namespace mini_claude;
    const SingleToken token = {(const block_q8_0 *) vy};
    multiply_all(&token, 1, n / QK8_0, vx, nc, s, 0);
}

#endif
