// Attention over keys and values of 16 bits, compiled into llama.cpp's ops.cpp.
//
// llama.cpp adds up values in 16 bits, looks at keys and values again for each query head, and rounds differently for
// one token, for many, and for each number of threads. Here query heads that share keys and values go through them
// together, sums are of 32 bits, and what a token gets depends only on what it looks at:
//
// - The cells that a token may look at are listed first, in the order of their positions, which llama.cpp's cache of keys
//   and values leaves in `extra` of the mask: where they lie among others, and in which order, makes no difference.
// - They are taken in segments of a fixed number. Each has a maximum, a sum and a result of its own (the softmax that
//   can be continued, Milakov and Gimelshein 2018), and they are put together in their order, whoever computed them.
//
// What it does not know (other types, sinks, caps, ALiBi) it leaves to llama.cpp.

#include <algorithm>

#include "vectors.h"

#if defined(MINI_CLAUDE_KERNELS)

namespace mini_claude {

constexpr int CELLS_OF_SEGMENT = 512;
constexpr int MAX_HEADS = 4;                    // that go through keys and values together
constexpr int MAX_SUMS = LANES == 16 ? 16 : 8;  // vectors that hold their results

// The cells that one token may look at, earlier positions first, and what is added to their scores.
struct Cells {
    std::vector<int32_t> index;
    std::vector<float> bias;
};

// Keys, or values, of one head: `stride` bytes from cell to cell.
struct Rows {
    const char * start;
    size_t stride;

    const ggml_fp16_t * row(int32_t cell) const { return (const ggml_fp16_t *) (start + cell * stride); }
};

// Of some cells: the largest score, the sum of e^(score - largest), and the values weighted by it.
struct Partial {
    float largest;
    float sum;
    float * values;  // [size of a head]
};

// Without `positions` of all cells, the first cell counts as the earliest.
static void list_cells(const ggml_fp16_t * mask, const int32_t * positions, int64_t num_cells, Cells & cells) {
    constexpr ggml_fp16_t MINUS_INFINITY = 0xfc00;
    constexpr uint64_t FOUR_OF_THEM = 0xfc00fc00fc00fc00;
    cells.index.resize(num_cells);
    size_t num = 0;
    for (int64_t i = 0; i < num_cells; i++) {
        uint64_t four = 0;
        if (mask && i + 4 <= num_cells) {
            memcpy(&four, mask + i, sizeof(four));
        }
        if (four == FOUR_OF_THEM) {
            i += 3;
        } else if (!mask || mask[i] != MINUS_INFINITY) {
            cells.index[num++] = (int32_t) i;
        }
    }
    cells.index.resize(num);
    const auto is_earlier = [positions](int32_t a, int32_t b) { return positions[a] < positions[b]; };
    if (positions && !std::is_sorted(cells.index.begin(), cells.index.end(), is_earlier)) {
        std::stable_sort(cells.index.begin(), cells.index.end(), is_earlier);
    }
    cells.bias.resize(num);
    for (size_t i = 0; i < num; i++) {
        cells.bias[i] = mask ? GGML_CPU_FP16_TO_FP32(mask[cells.index[i]]) : 0.0f;
    }
}

// `HEADS` query heads of `VECTORS * LANES` numbers each, already scaled, over `num` cells from `first` on.
template <int VECTORS, int HEADS>
static void attend(const float * queries, const Rows & keys, const Rows & values, const Cells & cells, int first,
                   int num, Partial * out) {
    constexpr int SIZE = VECTORS * LANES;
    alignas(64) float weights[HEADS][CELLS_OF_SEGMENT];
    const int32_t * index = cells.index.data() + first;
    Floats query[HEADS][VECTORS];
    for (int h = 0; h < HEADS; h++) {
        for (int v = 0; v < VECTORS; v++) {
            query[h][v] = load_floats(queries + h * SIZE + v * LANES);
        }
    }
    for (int i = 0; i < num; i += 4) {
        Floats product[HEADS][4];
        for (int c = 0; c < 4; c++) {
            const ggml_fp16_t * key = keys.row(index[MIN(i + c, num - 1)]);
            for (int h = 0; h < HEADS; h++) {
                product[h][c] = repeat(0.0f);
            }
            for (int v = 0; v < VECTORS; v++) {
                const Floats k = load_halves(key + v * LANES);
                for (int h = 0; h < HEADS; h++) {
                    product[h][c] = multiply_add(query[h][v], k, product[h][c]);
                }
            }
        }
        for (int h = 0; h < HEADS; h++) {
            store_four_sums(weights[h] + i, product[h]);
        }
    }
    const int padded = (num + LANES - 1) / LANES * LANES;
    for (int h = 0; h < HEADS; h++) {
        for (int i = 0; i < num; i++) {
            weights[h][i] += cells.bias[first + i];
        }
        for (int i = num; i < padded; i++) {
            weights[h][i] = -INFINITY;
        }
        Floats largest = repeat(-INFINITY), sum = repeat(0.0f);
        for (int i = 0; i < padded; i += LANES) {
            largest = larger(largest, load_floats(weights[h] + i));
        }
        out[h].largest = largest_of(largest);
        for (int i = 0; i < padded; i += LANES) {
            const Floats weight = exponential(add(load_floats(weights[h] + i), repeat(-out[h].largest)));
            store(weights[h] + i, weight);
            sum = add(sum, weight);
        }
        out[h].sum = sum_of(sum);
    }
    Floats result[HEADS][VECTORS];
    for (int h = 0; h < HEADS; h++) {
        for (int v = 0; v < VECTORS; v++) {
            result[h][v] = repeat(0.0f);
        }
    }
    for (int i = 0; i < num; i++) {
        const ggml_fp16_t * value = values.row(index[i]);
        for (int v = 0; v < VECTORS; v++) {
            const Floats x = load_halves(value + v * LANES);
            for (int h = 0; h < HEADS; h++) {
                result[h][v] = multiply_add(repeat(weights[h][i]), x, result[h][v]);
            }
        }
    }
    for (int h = 0; h < HEADS; h++) {
        for (int v = 0; v < VECTORS; v++) {
            store(out[h].values + v * LANES, result[h][v]);
        }
    }
}

using Attend = void (*)(const float *, const Rows &, const Rows &, const Cells &, int, int, Partial *);

// For 1 to MAX_HEADS heads of `VECTORS` vectors; nullptr where that is more than registers hold.
template <int VECTORS> static Attend attend_for(int num_heads) {
    constexpr int most = MAX_SUMS / VECTORS < 1 ? 1 : MAX_SUMS / VECTORS;
    switch (num_heads) {
        case 1: return attend<VECTORS, 1>;
        case 2: return most >= 2 ? attend<VECTORS, 2> : nullptr;
        case 3: return most >= 3 ? attend<VECTORS, 3> : nullptr;
        case 4: return most >= 4 ? attend<VECTORS, 4> : nullptr;
        default: return nullptr;
    }
}

static Attend attend_for(int64_t size, int num_heads) {
    switch (size) {
        case 64: return attend_for<64 / LANES>(num_heads);
        case 96: return attend_for<96 / LANES>(num_heads);
        case 128: return attend_for<128 / LANES>(num_heads);
        case 256: return attend_for<256 / LANES>(num_heads);
        default: return nullptr;
    }
}

// What is known of the cells before, and of those behind them, as one.
static void append(Partial & before, const Partial & behind, int64_t size) {
    const float largest = before.largest > behind.largest ? before.largest : behind.largest;
    const float scale_before = expf(before.largest - largest), scale_behind = expf(behind.largest - largest);
    for (int64_t i = 0; i < size; i++) {
        before.values[i] = before.values[i] * scale_before + behind.values[i] * scale_behind;
    }
    before.sum = before.sum * scale_before + behind.sum * scale_behind;
    before.largest = largest;
}

// One call of ggml's operator, seen from one thread.
struct Attention {
    const ggml_tensor *q, *k, *v, *mask;
    ggml_tensor * dst;
    float scale;
    int64_t size;                  // of a head
    int64_t heads_of_group;        // query heads that share keys and values
    std::vector<float> queries;    // of a group, scaled
    std::vector<float> buffer;     // values of Partials
    std::vector<Partial> whole, next;
    Cells cells;

    void list_cells_of(int64_t token, int64_t stream) {
        if (mask == nullptr) {
            return list_cells(nullptr, nullptr, k->ne[1], cells);
        }
        const int64_t of_mask = stream % mask->ne[3];
        const char * row = (const char *) mask->data + token * mask->nb[1] + of_mask * mask->nb[3];
        const int32_t * positions = (const int32_t *) mask->extra;
        list_cells((const ggml_fp16_t *) row, positions ? positions + of_mask * mask->ne[0] : nullptr, k->ne[1], cells);
    }
    float * result_of(int64_t head, int64_t token, int64_t stream) const {
        const int64_t row = (stream * dst->ne[2] + token) * dst->ne[1] + head;
        return (float *) ((char *) dst->data + row * dst->nb[1]);
    }
    static Rows rows_of(const ggml_tensor * t, int64_t head, int64_t stream, int64_t num_streams) {
        return {(const char *) t->data + head * t->nb[2] + stream / (num_streams / t->ne[3]) * t->nb[3], t->nb[1]};
    }
    int num_segments() const { return (int) (cells.index.size() + CELLS_OF_SEGMENT - 1) / CELLS_OF_SEGMENT; }

    void load_queries(int64_t group, int64_t token, int64_t stream) {
        queries.resize(heads_of_group * size);
        for (int64_t h = 0; h < heads_of_group; h++) {
            const int64_t head = group * heads_of_group + h;
            const size_t at = token * q->nb[1] + head * q->nb[2] + stream * q->nb[3];
            const float * from = (const float *) ((const char *) q->data + at);
            for (int64_t i = 0; i < size; i++) {
                queries[h * size + i] = from[i] * scale;
            }
        }
    }
    // The heads of a group, whose queries are loaded, over one segment.
    void segment(int64_t group, int64_t stream, int number, Partial * out) const {
        const Rows keys = rows_of(k, group, stream, q->ne[3]), values = rows_of(v, group, stream, q->ne[3]);
        const int first = number * CELLS_OF_SEGMENT;
        const int num = MIN(CELLS_OF_SEGMENT, (int) cells.index.size() - first);
        for (int64_t h = 0; h < heads_of_group;) {
            int together = (int) MIN((int64_t) MAX_HEADS, heads_of_group - h);
            while (attend_for(size, together) == nullptr) {
                together--;
            }
            attend_for(size, together)(queries.data() + h * size, keys, values, cells, first, num, out + h);
            h += together;
        }
    }
    void write(const Partial & whole, int64_t head, int64_t token, int64_t stream) const {
        float * to = result_of(head, token, stream);
        for (int64_t i = 0; i < size; i++) {
            to[i] = whole.sum == 0.0f ? 0.0f : whole.values[i] / whole.sum;
        }
    }
    // All heads of a group for one token.
    void compute(int64_t group, int64_t token, int64_t stream) {
        load_queries(group, token, stream);
        buffer.assign(2 * heads_of_group * size, 0.0f);
        whole.resize(heads_of_group);
        next.resize(heads_of_group);
        for (int64_t h = 0; h < heads_of_group; h++) {
            whole[h] = {-INFINITY, 0.0f, buffer.data() + h * size};
            next[h] = {-INFINITY, 0.0f, buffer.data() + (heads_of_group + h) * size};
        }
        for (int number = 0; number < num_segments(); number++) {
            segment(group, stream, number, number == 0 ? whole.data() : next.data());
            for (int64_t h = 0; number > 0 && h < heads_of_group; h++) {
                append(whole[h], next[h], size);
            }
        }
        for (int64_t h = 0; h < heads_of_group; h++) {
            write(whole[h], group * heads_of_group + h, token, stream);
        }
    }
};

// One token over many cells: threads share its segments. The same numbers as `compute` gives.
static void attention_of_one(const ggml_compute_params * params, Attention & call) {
    const int64_t num_groups = call.k->ne[2], num_heads = call.q->ne[2], size = call.size;
    const int num_segments = call.num_segments();
    float * shared = (float *) params->wdata;  // [heads, segments, largest, sum and values]
    const auto at = [&](int64_t head, int number) { return shared + (head * num_segments + number) * (2 + size); };
    std::vector<Partial> partials(call.heads_of_group);
    int64_t loaded = -1;
    for (int64_t part = params->ith; part < num_groups * num_segments; part += params->nth) {
        const int64_t group = part / num_segments, first_head = group * call.heads_of_group;
        const int number = (int) (part % num_segments);
        if (group != loaded) {
            call.load_queries(group, 0, 0);
            loaded = group;
        }
        for (int64_t h = 0; h < call.heads_of_group; h++) {
            partials[h].values = at(first_head + h, number) + 2;
        }
        call.segment(group, 0, number, partials.data());
        for (int64_t h = 0; h < call.heads_of_group; h++) {
            at(first_head + h, number)[0] = partials[h].largest;
            at(first_head + h, number)[1] = partials[h].sum;
        }
    }
    ggml_barrier(params->threadpool);
    for (int64_t head = params->ith; head < num_heads; head += params->nth) {
        Partial whole = {at(head, 0)[0], at(head, 0)[1], at(head, 0) + 2};
        for (int number = 1; number < num_segments; number++) {
            append(whole, {at(head, number)[0], at(head, number)[1], at(head, number) + 2}, size);
        }
        call.write(whole, head, 0, 0);
    }
}

// Whether it was computed here; each thread calls it, and all get the same answer.
static bool attention(const ggml_compute_params * params, ggml_tensor * dst) {
    const ggml_tensor *q = dst->src[0], *k = dst->src[1], *v = dst->src[2], *mask = dst->src[3];
    float options[3];  // scale, ALiBi, cap
    memcpy(options, dst->op_params, sizeof(options));
    const bool known = q->type == GGML_TYPE_F32 && k->type == GGML_TYPE_F16 && v->type == GGML_TYPE_F16 &&
                       dst->src[4] == nullptr && options[1] == 0.0f && options[2] == 0.0f &&
                       k->ne[0] == v->ne[0] && k->ne[2] == v->ne[2] &&
                       (!mask || (mask->type == GGML_TYPE_F16 && mask->ne[2] == 1)) && attend_for(k->ne[0], 1);
    if (params->use_ref || !known) {
        return false;
    }
    static thread_local Attention call;
    call.q = q, call.k = k, call.v = v, call.mask = mask, call.dst = dst;
    call.scale = options[0];
    call.size = k->ne[0];
    call.heads_of_group = q->ne[2] / k->ne[2];
    const int64_t num_tokens = q->ne[1], num_groups = k->ne[2];
    int64_t listed = -1;
    if (num_tokens == 1 && q->ne[3] == 1) {
        call.list_cells_of(0, 0);
        listed = 0;
        const size_t needed = q->ne[2] * call.num_segments() * (2 + call.size) * sizeof(float);
        if (call.num_segments() > 1 && needed <= params->wsize) {
            attention_of_one(params, call);
            return true;
        }
    }
    // Neighbouring tokens look at about as many cells each, so threads take them in turn: whole ones where there are
    // enough.
    const int64_t num_places = num_tokens * q->ne[3];
    const bool whole = num_places >= 2 * params->nth;
    const int64_t num_parts = whole ? num_places : num_places * num_groups;
    for (int64_t part = params->ith; part < num_parts; part += params->nth) {
        const int64_t place = whole ? part : part / num_groups, token = place % num_tokens, stream = place / num_tokens;
        if (place != listed) {
            call.list_cells_of(token, stream);
            listed = place;
        }
        for (int64_t group = 0; group < num_groups; group++) {
            if (whole || group == part % num_groups) {
                call.compute(group, token, stream);
            }
        }
    }
    return true;
}

}  // namespace mini_claude

#endif
