// Compares attention.h with softmax(q k) v written down directly, for one thread and for three, and for a token alone and
// among others. What llama.cpp's ops.cpp declares around it is declared here as far as it is used.

#include <algorithm>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

using ggml_fp16_t = uint16_t;
enum ggml_type { GGML_TYPE_F32, GGML_TYPE_F16 };
struct ggml_tensor {
    ggml_type type;
    int64_t ne[4];
    size_t nb[4];
    int32_t op_params[4];
    ggml_tensor * src[5];
    void * data;
    void * extra;
};
struct ggml_threadpool {
    std::mutex mutex;
    std::condition_variable changed;
    int num_threads, num_waiting = 0, num_passed = 0;
};
struct ggml_compute_params {
    int ith, nth;
    size_t wsize;
    void * wdata;
    ggml_threadpool * threadpool;
    bool use_ref;
};
static void ggml_barrier(ggml_threadpool * pool) {
    std::unique_lock<std::mutex> lock(pool->mutex);
    const int passed = pool->num_passed;
    if (++pool->num_waiting == pool->num_threads) {
        pool->num_waiting = 0;
        pool->num_passed++;
        pool->changed.notify_all();
    }
    pool->changed.wait(lock, [&] { return pool->num_passed != passed; });
}
template <typename T> static T MIN(T a, T b) { return a < b ? a : b; }

// Numbers here are multiples of 1/64 below 2, so that 16 bits hold them; and minus infinity.
static ggml_fp16_t to_half(float x) {
    if (x == 0.0f) {
        return 0;
    }
    int exponent;
    const float fraction = std::frexp(std::fabs(x), &exponent);
    return (ggml_fp16_t) ((x < 0) << 15 | (exponent + 14) << 10 | (int) (fraction * 2048 - 1024));
}
static float GGML_CPU_FP16_TO_FP32(ggml_fp16_t x) {
    const int exponent = x >> 10 & 31, fraction = x & 1023;
    const float size = exponent == 31 ? INFINITY : exponent == 0 ? 0.0f : std::ldexp(1024.0f + fraction, exponent - 25);
    return x >> 15 ? -size : size;
}
constexpr ggml_fp16_t MINUS_INFINITY = 0xfc00;

#if defined(MINI_CLAUDE_VECTORS)
#elif defined(__AVX512F__)
static __m512 ggml_v_expf(__m512 x) {
    float y[16];
    _mm512_storeu_ps(y, x);
    for (float & each : y) {
        each = std::exp(each);
    }
    return _mm512_loadu_ps(y);
}
#else
static __m256 ggml_v_expf(__m256 x) {
    float y[8];
    _mm256_storeu_ps(y, x);
    for (float & each : y) {
        each = std::exp(each);
    }
    return _mm256_loadu_ps(y);
}
#endif

#include "attention.h"

struct Tensor {
    ggml_tensor of = {};
    std::vector<char> bytes;

    Tensor(ggml_type type, int64_t a, int64_t b, int64_t c, int64_t d) {
        of.type = type;
        const int64_t ne[4] = {a, b, c, d};
        size_t stride = type == GGML_TYPE_F32 ? 4 : 2;
        for (int i = 0; i < 4; i++) {
            of.ne[i] = ne[i];
            of.nb[i] = stride;
            stride *= ne[i];
        }
        bytes.resize(stride);
        of.data = bytes.data();
    }
    float * f32(int64_t b, int64_t c, int64_t d) { return (float *) row(b, c, d); }
    ggml_fp16_t * f16(int64_t b, int64_t c, int64_t d) { return (ggml_fp16_t *) row(b, c, d); }
    char * row(int64_t b, int64_t c, int64_t d) { return bytes.data() + b * of.nb[1] + c * of.nb[2] + d * of.nb[3]; }
    const char * row(int64_t b, int64_t c, int64_t d) const { return const_cast<Tensor *>(this)->row(b, c, d); }
};

struct Case {
    int64_t size, num_heads, num_groups, num_tokens, num_cells, num_streams;
    int num_threads;
};

static std::vector<float> computed(Tensor & dst, int num_threads, size_t num_bytes, bool & known) {
    std::fill(dst.bytes.begin(), dst.bytes.end(), (char) 0x7f);
    std::vector<char> work(num_bytes);
    ggml_threadpool pool;
    pool.num_threads = num_threads;
    std::vector<std::thread> threads;
    std::vector<char> answers(num_threads);
    for (int i = 0; i < num_threads; i++) {
        threads.emplace_back([&, i] {
            const ggml_compute_params params = {i, num_threads, work.size(), work.data(), &pool, false};
            answers[i] = mini_claude::attention(&params, &dst.of);
        });
    }
    for (auto & thread : threads) {
        thread.join();
    }
    known = std::all_of(answers.begin(), answers.end(), [](char answer) { return answer; });
    const float * all = (const float *) dst.bytes.data();
    return std::vector<float>(all, all + dst.bytes.size() / sizeof(float));
}

// The same cells in another order, with their positions beside them, give the same to the last bit.
static int check_order(std::mt19937 & random, const Case & c, Tensor & k, Tensor & v, Tensor & mask, Tensor & dst,
                       const std::vector<float> & expected) {
    const Tensor keys = k, values = v, shown = mask;
    std::vector<int32_t> positions(c.num_cells * c.num_streams);
    for (int64_t s = 0; s < c.num_streams; s++) {
        const auto first = positions.begin() + s * c.num_cells;
        std::iota(first, first + c.num_cells, 0);
        std::shuffle(first, first + c.num_cells, random);
        for (int64_t i = 0; i < c.num_cells; i++) {
            const int64_t from = first[i];
            for (int64_t group = 0; group < c.num_groups; group++) {
                memcpy(k.row(i, group, s), keys.row(from, group, s), c.size * 2);
                memcpy(v.row(i, group, s), values.row(from, group, s), c.size * 2);
            }
            for (int64_t t = 0; t < c.num_tokens; t++) {
                mask.f16(t, 0, s)[i] = ((const ggml_fp16_t *) shown.row(t, 0, s))[from];
            }
        }
    }
    mask.of.extra = positions.data();
    bool known;
    const int num_wrong = computed(dst, c.num_threads, 1 << 22, known) != expected;
    mask.of.extra = nullptr;
    memcpy(k.bytes.data(), keys.bytes.data(), k.bytes.size());
    memcpy(v.bytes.data(), values.bytes.data(), v.bytes.size());
    memcpy(mask.bytes.data(), shown.bytes.data(), mask.bytes.size());
    return num_wrong;
}

static int check(std::mt19937 & random, const Case & c) {
    Tensor q(GGML_TYPE_F32, c.size, c.num_tokens, c.num_heads, c.num_streams);
    Tensor k(GGML_TYPE_F16, c.size, c.num_cells, c.num_groups, c.num_streams);
    Tensor v(GGML_TYPE_F16, c.size, c.num_cells, c.num_groups, c.num_streams);
    Tensor mask(GGML_TYPE_F16, c.num_cells, c.num_tokens, 1, c.num_streams);
    Tensor dst(GGML_TYPE_F32, c.size, c.num_heads, c.num_tokens, c.num_streams);
    std::uniform_int_distribution<int> number(-127, 127), percent(0, 99);
    for (size_t i = 0; i < q.bytes.size() / 4; i++) {
        ((float *) q.bytes.data())[i] = number(random) / 64.0f;
    }
    for (auto * tensor : {&k, &v}) {
        for (size_t i = 0; i < tensor->bytes.size() / 2; i++) {
            ((ggml_fp16_t *) tensor->bytes.data())[i] = to_half(number(random) / 64.0f);
        }
    }
    for (size_t i = 0; i < mask.bytes.size() / 2; i++) {
        const int chance = percent(random);
        ((ggml_fp16_t *) mask.bytes.data())[i] = chance < 20 ? MINUS_INFINITY : chance < 25 ? to_half(-0.5f) : 0;
    }
    std::fill(mask.bytes.begin(), mask.bytes.begin() + 8, 0);  // a token looks at something
    const float scale = 1.0f / std::sqrt((float) c.size), options[3] = {scale, 0.0f, 0.0f};
    memcpy(dst.of.op_params, options, sizeof(options));
    ggml_tensor * sources[5] = {&q.of, &k.of, &v.of, &mask.of, nullptr};
    std::copy(sources, sources + 5, dst.of.src);

    bool known, known_by_one, known_without_room;
    const auto result = computed(dst, c.num_threads, 1 << 22, known);
    const auto by_one = computed(dst, 1, 1 << 22, known_by_one);
    const auto without_room = computed(dst, c.num_threads, 0, known_without_room);  // segments are not shared then
    int num_wrong = !known + !known_by_one + !known_without_room + (result != by_one) + (result != without_room);
    num_wrong += check_order(random, c, k, v, mask, dst, result);
    for (int64_t s = 0; s < c.num_streams; s++) {
        for (int64_t t = 0; t < c.num_tokens; t++) {
            for (int64_t h = 0; h < c.num_heads; h++) {
                const int64_t group = h / (c.num_heads / c.num_groups);
                std::vector<double> weights(c.num_cells), sums(c.size);
                double sum = 0;
                for (int64_t i = 0; i < c.num_cells; i++) {
                    double score = 0;
                    for (int64_t j = 0; j < c.size; j++) {
                        score += (double) q.f32(t, h, s)[j] * GGML_CPU_FP16_TO_FP32(k.f16(i, group, s)[j]);
                    }
                    weights[i] = std::exp(score * scale + GGML_CPU_FP16_TO_FP32(mask.f16(t, 0, s)[i]));
                    sum += weights[i];
                    for (int64_t j = 0; j < c.size; j++) {
                        sums[j] += weights[i] * GGML_CPU_FP16_TO_FP32(v.f16(i, group, s)[j]);
                    }
                }
                const float * got = result.data() + ((s * c.num_tokens + t) * c.num_heads + h) * c.size;
                for (int64_t j = 0; j < c.size; j++) {
                    num_wrong += !(std::fabs(got[j] - sums[j] / sum) <= 1e-5);
                }
            }
        }
    }
    printf("size %d, %d heads in %d groups, %d tokens, %d cells, %d streams, %d threads: %d wrong\n", (int) c.size,
           (int) c.num_heads, (int) c.num_groups, (int) c.num_tokens, (int) c.num_cells, (int) c.num_streams, c.num_threads,
           num_wrong);
    return num_wrong;
}

// What it does not know is left alone.
static int check_refusals() {
    Tensor q(GGML_TYPE_F32, 64, 1, 1, 1), k(GGML_TYPE_F16, 64, 8, 1, 1), odd(GGML_TYPE_F16, 72, 8, 1, 1);
    Tensor f32(GGML_TYPE_F32, 64, 8, 1, 1), dst(GGML_TYPE_F32, 64, 1, 1, 1);
    int num_wrong = 0;
    const auto expect = [&](bool expected, ggml_tensor * key, ggml_tensor * sinks, float bias, float cap) {
        const float options[3] = {1.0f, bias, cap};
        memcpy(dst.of.op_params, options, sizeof(options));
        ggml_tensor * sources[5] = {&q.of, key, key, nullptr, sinks};
        std::copy(sources, sources + 5, dst.of.src);
        bool known;
        computed(dst, 1, 0, known);
        num_wrong += known != expected;
    };
    expect(true, &k.of, nullptr, 0.0f, 0.0f);
    expect(false, &k.of, &q.of, 0.0f, 0.0f);
    expect(false, &k.of, nullptr, 8.0f, 0.0f);
    expect(false, &k.of, nullptr, 0.0f, 30.0f);
    expect(false, &f32.of, nullptr, 0.0f, 0.0f);
    expect(false, &odd.of, nullptr, 0.0f, 0.0f);
    printf("refusals: %d wrong\n", num_wrong);
    return num_wrong;
}

int main() {
    std::mt19937 random(1);
    int num_wrong = check_refusals();
    for (const Case & c : std::vector<Case>{
             {64, 9, 3, 1, 40, 1, 3},
             {64, 9, 3, 1, 1700, 1, 3},
             {64, 9, 3, 7, 700, 1, 3},
             {64, 4, 4, 1, 33, 5, 3},
             {96, 8, 1, 2, 50, 2, 1},
             {128, 14, 2, 1, 1100, 1, 2},
             {256, 4, 2, 3, 64, 1, 2},
         }) {
        num_wrong += check(random, c);
    }
    return num_wrong != 0;
}
