// Heads whose maps are made of other heads' logits (hMHSA, arXiv 2306.10875): a mix over heads, a depthwise convolution over (query, key) that is
// added to it, and a softmax of its own. Rows of mixed logits pass through a window of a tile and what the convolution reaches; no map is ever whole.

namespace vf::VF_NAMESPACE {

// Mixed logits of a few queries, [row][head][stride] with zeros at both ends of a row.
struct MixedRows {
    float *rows = nullptr, *prefix = nullptr; // prefix [row][head][prefix_stride]: logits of the columns that the convolution does not cover
    const float *zeros = nullptr;             // a row of nothing
    size_t stride = 0, prefix_stride = 0;
    int columns = 0, first = 0; // first: the query of row 0
    float *row(const MixedHeads &mixed, int query, int head) const {
        return rows + (size_t(query - first) * size_t(mixed.count) + size_t(head)) * stride + mixed_border;
    }
    float *prefix_of(const MixedHeads &mixed, int query, int head) const {
        return prefix + (size_t(query - first) * size_t(mixed.count) + size_t(head)) * prefix_stride;
    }
};

// Numbers of a row from `from` on become `value`; fewer than a vector of them.
VF_INLINE void fill_end(float *row, int from, int columns, float value) {
    if (from == columns) return;
    float *const last = row + columns - lanes;
    i32 lane;
    for (int i = 0; i < lanes; i++) lane[i] = i;
    save(last, lane < lanes - (columns - from) ? load<f32>(last) : all(value));
}

// Adds H heads' sums of codes, each with its weight, to a row that begins with `base` (or, after the first heads, as it is).
template <int H>
VF_INLINE void mix_heads(const int32_t *sums, size_t heads_stride, const float *weights, const float *base, int columns, float *row) {
    f32 weight[H];
    each<H>(VF_EACH(head) { weight[head] = all(weights[head]); });
    for (int c = 0; c < columns; c += lanes) {
        f32 y = base ? all(*base) : load<f32>(row + c);
        each<H>(VF_EACH(head) { y = y + to_floats(load<i32>(sums + size_t(head) * heads_stride + size_t(c))) * weight[head]; });
        save(row + c, y);
    }
}
VF_INLINE void mix_row(const int32_t *sums, size_t heads_stride, int heads, const float *weights, float base, int columns, float *row) {
    for (int head = 0; head < heads; head += 4, sums += 4 * heads_stride, weights += 4) {
        const float *const first = head == 0 ? &base : nullptr;
        if (heads - head >= 4) mix_heads<4>(sums, heads_stride, weights, first, columns, row);
        else if (heads - head == 3) mix_heads<3>(sums, heads_stride, weights, first, columns, row);
        else if (heads - head == 2) mix_heads<2>(sums, heads_stride, weights, first, columns, row);
        else mix_heads<1>(sums, heads_stride, weights, first, columns, row);
    }
}

// The rows of queries begin..end, at most a tile.
static void mix_rows(const MixedHeads &mixed, int begin, int end, const MixedRows &made, Scratch &scratch) {
    const int heads = mixed.logit_heads, columns = made.columns, covered = mixed.kernel ? mixed.kernel_first : 0;
    const size_t heads_stride = size_t(tile_rows) * size_t(columns);
    float *const weights = scratch.mixed_weights.data(), *const lacking = weights + heads; // lacking [head][row]: what a row's sums lack of logits
    for (int head = 0; head < heads; head++) {
        const Head &computed = mixed.computed[head];
        scores(computed, begin, end - begin, scratch.logits.data() + size_t(head) * heads_stride, columns);
        for (int query = begin; query < end; query++) {
            int32_t codes = 0;
            if (mixed.key_shift[head]) sum_rows(computed.queries + size_t(query) * computed.query_stride, 0, 1, computed.width, &codes);
            lacking[head * tile_rows + query - begin] = float((codes - computed.width * mixed.query_zero[head]) * mixed.key_shift[head]);
        }
    }
    for (int made_head = 0; made_head < mixed.count; made_head++) {
        for (int head = 0; head < heads; head++)
            weights[head] = mixed.mix[size_t(made_head) * size_t(heads) + size_t(head)] * mixed.computed[head].logit_scale;
        for (int query = begin; query < end; query++) {
            float base = mixed.mix_bias ? mixed.mix_bias[made_head] : 0.0f;
            for (int head = 0; head < heads; head++) base += lacking[head * tile_rows + query - begin] * weights[head];
            float *const row = made.row(mixed, query, made_head);
            mix_row(scratch.logits.data() + size_t(query - begin) * size_t(columns), heads_stride, heads, weights, base, columns, row);
            fill_end(row, mixed.tokens, columns, 0);
            if (query < covered) continue; // what lies outside of the convolution is not read by it
            float *const prefix = made.prefix_of(mixed, query, made_head);
            for (int c = 0; c < covered; c++) prefix[c] = row[c], row[c] = 0;
        }
    }
}

// R rows of y = x + conv(x), whose taps are rows of x around them.
template <int K, int R> VF_INLINE void convolve(const float *const *taps, int columns, const float *kernel, float *out, size_t out_stride) {
    for (int c = 0; c < columns; c += lanes) {
        f32 sum[R];
        each<R>(VF_EACH(r) { sum[r] = load<f32>(taps[r + K / 2] + c); });
        each<R + K - 1>(VF_EACH(tap) {
            each<K>(VF_EACH(right) {
                const f32 x = load<f32>(taps[tap] + c + right - K / 2);
                each<R>(VF_EACH(r) {
                    if constexpr (tap >= r && tap - r < K) sum[r] = sum[r] + x * kernel[(tap - r) * K + right];
                });
            });
        });
        each<R>(VF_EACH(r) { save(out + size_t(r) * out_stride + size_t(c), sum[r]); });
    }
}

constexpr int convolved_together = lanes == 16 ? 4 : 2;

// Logits of a hallucinated head for `rows` queries, columns behind the tokens far below all others.
static void mixed_logits(const MixedHeads &mixed, int head, int query, int rows, const MixedRows &made, float *out) {
    const int half = mixed.kernel / 2;
    const float *taps[tile_rows + 4];
    for (int row = -half; row < rows + half; row++) {
        const int from = query + row;
        const bool inside = from >= (mixed.kernel ? mixed.kernel_first : 0) && from < mixed.queries;
        taps[row + half] = inside ? made.row(mixed, from, head) : made.zeros;
    }
    const float *const kernel = mixed.convolution + size_t(head) * size_t(mixed.kernel * mixed.kernel);
    const size_t stride = size_t(made.columns);
    for (int row = 0; row < rows;) {
        const bool several = rows - row >= convolved_together;
        float *const place = out + size_t(row) * stride;
        if (mixed.kernel == 3 && several) convolve<3, convolved_together>(taps + row, made.columns, kernel, place, stride);
        else if (mixed.kernel == 3) convolve<3, 1>(taps + row, made.columns, kernel, place, stride);
        else if (mixed.kernel == 5 && several) convolve<5, convolved_together>(taps + row, made.columns, kernel, place, stride);
        else if (mixed.kernel == 5) convolve<5, 1>(taps + row, made.columns, kernel, place, stride);
        else std::memcpy(place, taps[row], stride * sizeof(float));
        row += mixed.kernel && several ? convolved_together : 1;
    }
    for (int row = 0; row < rows; row++) {
        float *const place = out + size_t(row) * stride;
        if (mixed.kernel && query + row < mixed.kernel_first) std::memcpy(place, made.row(mixed, query + row, head), stride * sizeof(float));
        else if (mixed.kernel) std::memcpy(place, made.prefix_of(mixed, query + row, head), size_t(mixed.kernel_first) * sizeof(float));
        fill_end(place, mixed.tokens, made.columns, -1e30f);
    }
}

VF_INLINE float largest_float(const float *row, int columns) {
    f32 largest = all(-1e30f);
    for (int c = 0; c < columns; c += lanes) largest = larger(largest, load<f32>(row + c));
    return largest_of(largest);
}

static void attend_mixed(const MixedHeads &mixed, int first, int last, Scratch &scratch) {
    const int half = mixed.kernel / 2, columns = (mixed.tokens + lanes - 1) / lanes * lanes;
    const size_t heads = size_t(mixed.count), stride = size_t(columns) + 2 * mixed_border;
    MixedRows made;
    made.columns = columns, made.stride = stride, made.prefix_stride = size_t(mixed.kernel_first);
    float *place = scratch.mixed.data();
    made.zeros = place + mixed_border, made.rows = place + stride;
    made.prefix = made.rows + size_t(tile_rows + 2 * half) * heads * stride;
    float *const out = made.prefix + size_t(tile_rows + 2 * half) * heads * made.prefix_stride;
    std::memset(place, 0, (1 + size_t(tile_rows + 2 * half) * heads) * stride * sizeof(float)); // the ends of rows stay so
    int next = first - half > 0 ? first - half : 0;                                             // the first query whose row is not there yet
    for (int query = first; query < last; query += tile_rows) {
        const int rows = last - query < tile_rows ? last - query : tile_rows;
        const int begin = query - half > 0 ? query - half : 0, end = query + rows + half < mixed.queries ? query + rows + half : mixed.queries;
        if (begin < next && begin != made.first) {
            std::memmove(made.rows, made.rows + size_t(begin - made.first) * heads * stride, size_t(next - begin) * heads * stride * sizeof(float));
            std::memmove(made.prefix, made.prefix + size_t(begin - made.first) * heads * made.prefix_stride,
                         size_t(next - begin) * heads * made.prefix_stride * sizeof(float));
        }
        made.first = begin;
        while (next < end) {
            const int to = end - next < tile_rows ? end : next + tile_rows;
            mix_rows(mixed, next, to, made, scratch);
            next = to;
        }
        for (int head = 0; head < mixed.count; head++) {
            const Head &made_head = mixed.made[head];
            mixed_logits(mixed, head, query, rows, made, out);
            MapTile tile = map_tile(made_head, rows, columns, scratch);
            float top[tile_rows], sum[tile_rows];
            for (int row = 0; row < rows; row++) top[row] = largest_float(out + size_t(row) * size_t(columns), columns);
            for (int row = 0; row < rows; row++) {
                float *const logits = out + size_t(row) * size_t(columns);
                const float most = top[row];
                sum[row] = exponentials(logits, columns, made_head.mode == 1, [=](int c) { return load<f32>(logits + c) - most; });
            }
            for (int row = 0; row < rows; row++) add_row(tile, made_head, query + row, row, out + size_t(row) * size_t(columns), sum[row]);
            mix_values(tile, made_head, query, scratch.sums.data());
        }
    }
}

} // namespace vf::VF_NAMESPACE
