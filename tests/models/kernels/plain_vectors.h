// Vectors of eight numbers for vnni_matmul.h in plain C++, as any processor has them: 32 bytes, or 8 floats.

struct Ints {
    uint8_t bytes[32];
};
struct Floats {
    float of[8];
};
static inline Ints load(const uint8_t * p) {
    Ints x;
    memcpy(x.bytes, p, sizeof(x.bytes));
    return x;
}
static inline Ints low_nibbles(Ints x) {
    for (uint8_t & byte : x.bytes) {
        byte %= 16;
    }
    return x;
}
static inline Ints high_nibbles(Ints x) {
    for (uint8_t & byte : x.bytes) {
        byte /= 16;
    }
    return x;
}
static inline int32_t lane_of(const Ints & x, int lane) {
    int32_t value;
    memcpy(&value, x.bytes + 4 * lane, sizeof(value));
    return value;
}
static inline void put_lane(Ints & x, int lane, int32_t value) { memcpy(x.bytes + 4 * lane, &value, sizeof(value)); }
static inline Ints repeat(int32_t value) {
    Ints x;
    for (int lane = 0; lane < 8; lane++) {
        put_lane(x, lane, value);
    }
    return x;
}
static inline Floats repeat(float x) { return {{x, x, x, x, x, x, x, x}}; }
static inline Ints add_products(Ints sum, Ints weights, Ints tokens) {
    for (int lane = 0; lane < 8; lane++) {
        int32_t total = lane_of(sum, lane);
        for (int i = 4 * lane; i < 4 * lane + 4; i++) {
            total += weights.bytes[i] * (int8_t) tokens.bytes[i];
        }
        put_lane(sum, lane, total);
    }
    return sum;
}
static inline Floats to_floats(Ints x) {
    Floats y;
    for (int lane = 0; lane < 8; lane++) {
        y.of[lane] = (float) lane_of(x, lane);
    }
    return y;
}
static inline Floats load_halves(const ggml_fp16_t * p) {
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
static inline Floats load_floats(const float * p) {
    Floats x;
    memcpy(x.of, p, sizeof(x.of));
    return x;
}
static inline Floats add(Floats a, Floats b) {
    for (int lane = 0; lane < 8; lane++) {
        a.of[lane] += b.of[lane];
    }
    return a;
}
static inline Floats larger(Floats a, Floats b) {
    for (int lane = 0; lane < 8; lane++) {
        a.of[lane] = std::fmax(a.of[lane], b.of[lane]);
    }
    return a;
}
static inline Floats exponential(Floats x) {
    for (float & each : x.of) {
        each = std::exp(each);
    }
    return x;
}
static inline float sum_of(Floats x) {
    float sum = 0.0f;
    for (float each : x.of) {
        sum += each;
    }
    return sum;
}
static inline float largest_of(Floats x) {
    float largest = -INFINITY;
    for (float each : x.of) {
        largest = std::fmax(largest, each);
    }
    return largest;
}
static inline void store_four_sums(float * p, const Floats * x) {
    for (int i = 0; i < 4; i++) {
        p[i] = sum_of(x[i]);
    }
}
