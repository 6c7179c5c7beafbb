// Vectors of eight numbers for q8_0_vnni.h in plain C++, as any processor has them.

struct Ints {
    int32_t of[8];
};
struct Floats {
    float of[8];
};
static inline Ints load(const uint8_t * p) {
    Ints x;
    memcpy(x.of, p, sizeof(x.of));
    return x;
}
static inline Ints repeat(int32_t x) { return {{x, x, x, x, x, x, x, x}}; }
static inline Floats repeat(float x) { return {{x, x, x, x, x, x, x, x}}; }
static inline Ints add_products(Ints sum, Ints weights, Ints tokens) {
    for (int lane = 0; lane < 8; lane++) {
        const uint8_t * w = (const uint8_t *) &weights.of[lane];
        const int8_t * t = (const int8_t *) &tokens.of[lane];
        for (int i = 0; i < 4; i++) {
            sum.of[lane] += w[i] * t[i];
        }
    }
    return sum;
}
static inline Floats to_floats(Ints x) {
    Floats y;
    for (int lane = 0; lane < 8; lane++) {
        y.of[lane] = (float) x.of[lane];
    }
    return y;
}
static inline Floats load_scales(const ggml_half * p) {
    Floats x;
    for (int lane = 0; lane < 8; lane++) {
        x.of[lane] = GGML_CPU_FP16_TO_FP32(p[lane]);
    }
    return x;
}
static inline Floats multiply(Floats a, Floats b) {
    for (int lane = 0; lane < 8; lane++) {
        a.of[lane] *= b.of[lane];
    }
    return a;
}
static inline Floats multiply_add(Floats a, Floats b, Floats c) {
    for (int lane = 0; lane < 8; lane++) {
        c.of[lane] = std::fma(a.of[lane], b.of[lane], c.of[lane]);
    }
    return c;
}
static inline void store(float * p, Floats x) { memcpy(p, x.of, sizeof(x.of)); }
