// Compares vnni_matmul.h with the sum that it stands for, written down directly.
// What llama.cpp's repack.cpp declares around it is declared here as far as it is used.

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

using ggml_fp16_t = uint16_t;
enum ggml_type { GGML_TYPE_Q8_0 };
constexpr int QK8_0 = 32;
struct block_q8_0 {
    ggml_fp16_t d;
    int8_t qs[QK8_0];
};
struct block_q4_0 {
    ggml_fp16_t d;
    uint8_t qs[QK8_0 / 2];
};
struct block_q8_0x4 {
    ggml_fp16_t d[4];
    int8_t qs[4 * QK8_0];
};
struct ggml_tensor {
    int64_t ne[2];
    void * data;
    size_t num_bytes;
};
static int64_t ggml_nrows(const ggml_tensor * t) { return t->ne[1]; }
static size_t ggml_nbytes(const ggml_tensor * t) { return t->num_bytes; }
template <typename T> static T MIN(T a, T b) { return a < b ? a : b; }
#define GGML_ASSERT(x) if (!(x)) { fprintf(stderr, "not so: %s\n", #x); abort(); }

// Powers of two are all that the scales of this test are.
static ggml_fp16_t half_of_power(int exponent) { return (ggml_fp16_t) ((exponent + 15) << 10); }
static float GGML_CPU_FP16_TO_FP32(ggml_fp16_t x) { return std::ldexp(1.0f, (x >> 10) - 15); }

template <typename B, int64_t I, int64_t N> int repack(ggml_tensor *, const void *, size_t);
template <typename B, int64_t I, int64_t N, ggml_type P> void gemm(int, float *, size_t, const void *, const void *, int, int);
template <typename B, int64_t I, int64_t N, ggml_type P> void gemv(int, float *, size_t, const void *, const void *, int, int);

#if defined(MINI_CLAUDE_VECTORS)
#elif defined(__AVX512F__)
static __m512 ggml_v_expf(__m512 x) { return x; }  // named in vectors.h, not used by these kernels
#else
static __m256 ggml_v_expf(__m256 x) { return x; }
#endif

#include "vnni_matmul.h"

static int value(const block_q8_0 & block, int i) { return block.qs[i]; }
static int value(const block_q4_0 & block, int i) { return (i < 16 ? block.qs[i] % 16 : block.qs[i - 16] / 16) - 8; }

// All bytes can come, so -128 too, which llama.cpp's own quantisation never makes of weights.
template <typename Block> static std::vector<Block> random_blocks(std::mt19937 & random, int num, int lowest = 0) {
    std::uniform_int_distribution<int> byte(lowest, 255), exponent(-9, -2);
    std::vector<Block> blocks(num);
    for (auto & block : blocks) {
        block.d = half_of_power(exponent(random));
        for (auto & q : block.qs) {
            q = (uint8_t) (byte(random) - 128);
        }
    }
    return blocks;
}

// Four neighbouring tokens, interleaved by eight, as llama.cpp quantises them.
static std::vector<block_q8_0x4> interleaved(const std::vector<block_q8_0> & tokens, int num_blocks) {
    std::vector<block_q8_0x4> out(tokens.size() / 4);
    for (size_t n = 0; n < out.size(); n++) {
        const size_t set = n / num_blocks, i = n % num_blocks;
        for (int t = 0; t < 4; t++) {
            const block_q8_0 & block = tokens[(set * 4 + t) * num_blocks + i];
            out[n].d[t] = block.d;
            for (int j = 0; j < QK8_0; j++) {
                out[n].qs[j / 8 * 32 + t * 8 + j % 8] = block.qs[j];
            }
        }
    }
    return out;
}

template <typename Block> static int check(std::mt19937 & random, int num_blocks, int num_rows, int num_tokens) {
    const auto weights = random_blocks<Block>(random, num_rows * num_blocks);
    const auto tokens = random_blocks<block_q8_0>(random, num_tokens * num_blocks, 1);
    std::vector<char> laid_out(weights.size() * sizeof(Block));
    ggml_tensor tensor = {{num_blocks * QK8_0, num_rows}, laid_out.data(), laid_out.size()};
    repack<Block, 8, 16>(&tensor, weights.data(), laid_out.size());

    const size_t stride = num_rows + 5;  // results may lie in rows of something wider
    const float untouched = 12345.0f;
    std::vector<float> together(num_tokens * stride, untouched), alone(num_tokens * stride, untouched);
    const auto sets = interleaved(tokens, num_blocks);
    const int n = num_blocks * QK8_0;
    gemm<Block, 8, 16, GGML_TYPE_Q8_0>(n, together.data(), stride, laid_out.data(), sets.data(), num_tokens, num_rows);
    for (int t = 0; t < num_tokens; t++) {
        const auto * token = tokens.data() + t * num_blocks;
        gemv<Block, 8, 16, GGML_TYPE_Q8_0>(n, alone.data() + t * stride, 0, laid_out.data(), token, 1, num_rows);
    }
    int num_wrong = 0;
    for (int t = 0; t < num_tokens; t++) {
        for (size_t row = 0; row < stride; row++) {
            const float a = together[t * stride + row], b = alone[t * stride + row];
            double sum = untouched, size = 0;
            if (row < (size_t) num_rows) {
                sum = 0;
                for (int i = 0; i < num_blocks; i++) {
                    const Block & w = weights[row * num_blocks + i];
                    const block_q8_0 & x = tokens[t * num_blocks + i];
                    int products = 0;
                    for (int j = 0; j < QK8_0; j++) {
                        products += value(w, j) * value(x, j);
                    }
                    const double term = (double) products * GGML_CPU_FP16_TO_FP32(w.d) * GGML_CPU_FP16_TO_FP32(x.d);
                    sum += term;
                    size += std::fabs(term);
                }
            }
            num_wrong += !(std::fabs(a - sum) <= 1e-6 * size) || a != b;
        }
    }
    printf("%d bytes a block, %d blocks, %d rows, %d tokens: %d wrong\n", (int) sizeof(Block), num_blocks, num_rows, num_tokens, num_wrong);
    return num_wrong;
}

int main() {
    std::mt19937 random(1);
    int num_wrong = 0;
    for (int num_blocks : {1, 2, 18, 48}) {
        for (int num_rows : {16, 32, 48, 192}) {
            for (int num_tokens : {4, 12}) {
                num_wrong += check<block_q8_0>(random, num_blocks, num_rows, num_tokens);
                num_wrong += check<block_q4_0>(random, num_blocks, num_rows, num_tokens);
            }
        }
    }
    return num_wrong != 0;
}
