// Registers of 16 or 8 numbers, under the same names for AVX-512 VNNI, AVX-VNNI and, in tests, plain C++. Our kernels are
// compiled where one of them is there.

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__) || defined(MINI_CLAUDE_VECTORS)
#define MINI_CLAUDE_KERNELS 1

namespace mini_claude {

#if defined(MINI_CLAUDE_VECTORS)
#include MINI_CLAUDE_VECTORS
#elif defined(__AVX512VNNI__)
using Ints = __m512i;
using Floats = __m512;
static inline Ints load(const uint8_t * p) { return _mm512_loadu_si512((const void *) p); }
static inline Ints low_nibbles(Ints x) { return _mm512_and_si512(x, _mm512_set1_epi8(0x0f)); }
static inline Ints high_nibbles(Ints x) { return low_nibbles(_mm512_srli_epi16(x, 4)); }
static inline Ints repeat(int32_t x) { return _mm512_set1_epi32(x); }
static inline Floats repeat(float x) { return _mm512_set1_ps(x); }
static inline Ints add_products(Ints sum, Ints weights, Ints tokens) {
    return _mm512_dpbusd_epi32(sum, weights, tokens);
}
static inline Floats to_floats(Ints x) { return _mm512_cvtepi32_ps(x); }
static inline Floats load_halves(const ggml_fp16_t * p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *) p));
}
static inline Floats multiply(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
static inline Floats multiply_add(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
static inline Floats load_floats(const float * p) { return _mm512_loadu_ps(p); }
static inline Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
static inline Floats larger(Floats a, Floats b) { return _mm512_max_ps(a, b); }
static inline Floats exponential(Floats x) { return ggml_v_expf(x); }
static inline float sum_of(Floats x) { return _mm512_reduce_add_ps(x); }
static inline void store_four_sums(float * p, const Floats * x) {
    const Floats a = add(_mm512_unpacklo_ps(x[0], x[1]), _mm512_unpackhi_ps(x[0], x[1]));  // in turn of x[0] and x[1]
    const Floats b = add(_mm512_unpacklo_ps(x[2], x[3]), _mm512_unpackhi_ps(x[2], x[3]));
    const __m512d c = _mm512_castps_pd(a), d = _mm512_castps_pd(b);
    const Floats all = add(_mm512_castpd_ps(_mm512_unpacklo_pd(c, d)), _mm512_castpd_ps(_mm512_unpackhi_pd(c, d)));
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
    _mm_storeu_ps(p, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
}
static inline float largest_of(Floats x) { return _mm512_reduce_max_ps(x); }
static inline void store(float * p, Floats x) { _mm512_storeu_ps(p, x); }
#else
using Ints = __m256i;
using Floats = __m256;
static inline Ints load(const uint8_t * p) { return _mm256_loadu_si256((const __m256i *) p); }
static inline Ints low_nibbles(Ints x) { return _mm256_and_si256(x, _mm256_set1_epi8(0x0f)); }
static inline Ints high_nibbles(Ints x) { return low_nibbles(_mm256_srli_epi16(x, 4)); }
static inline Ints repeat(int32_t x) { return _mm256_set1_epi32(x); }
static inline Floats repeat(float x) { return _mm256_set1_ps(x); }
static inline Ints add_products(Ints sum, Ints weights, Ints tokens) {
    return _mm256_dpbusd_avx_epi32(sum, weights, tokens);
}
static inline Floats to_floats(Ints x) { return _mm256_cvtepi32_ps(x); }
static inline Floats load_halves(const ggml_fp16_t * p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) p)); }
static inline Floats multiply(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
static inline Floats multiply_add(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
static inline Floats load_floats(const float * p) { return _mm256_loadu_ps(p); }
static inline Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
static inline Floats larger(Floats a, Floats b) { return _mm256_max_ps(a, b); }
static inline Floats exponential(Floats x) { return ggml_v_expf(x); }
static inline __m128 halves_added(Floats x) { return _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1)); }
static inline float sum_of(Floats x) {
    const __m128 four = halves_added(x);
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
static inline void store_four_sums(float * p, const Floats * x) {
    const Floats all = _mm256_hadd_ps(_mm256_hadd_ps(x[0], x[1]), _mm256_hadd_ps(x[2], x[3]));
    _mm_storeu_ps(p, halves_added(all));
}
static inline float largest_of(Floats x) {
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
static inline void store(float * p, Floats x) { _mm256_storeu_ps(p, x); }
#endif

constexpr int LANES = sizeof(Floats) / sizeof(float);

}  // namespace mini_claude

#endif
