// Heads whose maps are made of other heads' logits (hMHSA, arXiv 2306.10875): a mix over heads, a depthwise convolution over (query, key) that is
// added to it, and a softmax of its own. Rows of logits around the queries are computed as they are needed; no map is ever whole.

namespace vf::VF_NAMESPACE {

// Logits of the computed heads for queries begin..end as floats [row][head][columns], zeros where there is no token.
VF_INLINE void float_logits(const MixedHeads &mixed, int begin, int end, int columns, float *out, int32_t *sums) {
    const int tokens = mixed.tokens;
    for (int head = 0; head < mixed.logit_heads; head++) {
        const Head &computed = mixed.computed[head];
        for (int row = begin; row < end; row++) {
            float *place = out + (size_t(row - begin) * size_t(mixed.logit_heads) + size_t(head)) * size_t(columns);
            if (row < 0 || row >= mixed.queries) {
                std::memset(place, 0, size_t(columns) * sizeof(float));
                continue;
            }
            scores(computed, row, 1, sums, columns);
            const uint8_t *codes = computed.queries + size_t(row) * computed.query_stride;
            int32_t queries = -computed.width * mixed.query_zero[head];
            for (int c = 0; c < computed.width; c++) queries += codes[c];
            const i32 shift = all_ints(queries * mixed.key_shift[head]);
            for (int c = 0; c < columns; c += lanes) save(place + c, to_floats(load<i32>(sums + c) + shift) * computed.logit_scale);
            for (int c = tokens; c < columns; c++) place[c] = 0;
        }
    }
}

// One row of a hallucinated head before the convolution; zeros outside of the tokens that the convolution covers where `inside` is set.
VF_INLINE void mixed_row(const MixedHeads &mixed, int head, int row, bool inside, const float *logits, int columns, float *out) {
    if (row < 0 || row >= mixed.queries || (inside && row < mixed.kernel_first)) {
        std::memset(out, 0, size_t(columns) * sizeof(float));
        return;
    }
    const float *mix = mixed.mix + size_t(head) * size_t(mixed.logit_heads);
    const float bias = mixed.mix_bias ? mixed.mix_bias[head] : 0.0f;
    for (int c = 0; c < columns; c += lanes) {
        f32 y = all(bias);
        for (int h = 0; h < mixed.logit_heads; h++) y = y + load<f32>(logits + size_t(h) * size_t(columns) + c) * mix[h];
        save(out + c, y);
    }
    for (int c = inside ? 0 : columns; c < mixed.kernel_first; c++) out[c] = 0;
    for (int c = mixed.tokens; c < columns; c++) out[c] = 0;
}

static void attend_mixed(const MixedHeads &mixed, int first, int last, Scratch &scratch) {
    const int columns = (mixed.tokens + lanes - 1) / lanes * lanes, half = mixed.kernel / 2, most = tile_rows + 2 * half;
    const size_t row_size = size_t(columns), border = 16;
    float *logits = scratch.mixed.data(), *rows_mixed = logits + size_t(most) * size_t(mixed.logit_heads) * row_size;
    float *result = rows_mixed + size_t(most) * (row_size + 2 * border) + border;
    for (int query = first; query < last; query += tile_rows) {
        const int rows = last - query < tile_rows ? last - query : tile_rows, begin = query - half, end = query + rows + half;
        float_logits(mixed, begin, end, columns, logits, scratch.logits.data());
        for (int head = 0; head < mixed.count; head++) {
            for (int row = begin; row < end; row++) {
                float *place = rows_mixed + size_t(row - begin) * (row_size + 2 * border);
                std::memset(place, 0, (row_size + 2 * border) * sizeof(float));
                mixed_row(mixed, head, row, mixed.kernel > 0, logits + size_t(row - begin) * size_t(mixed.logit_heads) * row_size, columns,
                          place + border);
            }
            const Head &made_head = mixed.made[head];
            MapTile made = map_tile(made_head, rows, columns, scratch);
            for (int row = 0; row < rows; row++) {
                mixed_row(mixed, head, query + row, false, logits + size_t(row + half) * size_t(mixed.logit_heads) * row_size, columns, result);
                if (mixed.kernel && query + row >= mixed.kernel_first) {
                    const float *kernel = mixed.convolution + size_t(head) * size_t(mixed.kernel * mixed.kernel);
                    int from = mixed.kernel_first / lanes * lanes;
                    for (int c = from; c < columns; c += lanes) {
                        f32 y = {};
                        for (int down = 0; down < mixed.kernel; down++)
                            for (int right = 0; right < mixed.kernel; right++)
                                y = y + load<f32>(rows_mixed + size_t(row + down) * (row_size + 2 * border) + border + size_t(c) + size_t(right) -
                                                  size_t(half)) *
                                            kernel[down * mixed.kernel + right];
                        f32 kept = load<f32>(result + c);
                        save(result + c, kept + y);
                        for (int lane = 0; lane < lanes && c + lane < mixed.kernel_first; lane++) result[c + lane] = kept[lane];
                    }
                }
                for (int c = mixed.tokens; c < columns; c++) result[c] = -1e30f;
                f32 largest = all(-1e30f);
                for (int c = 0; c < columns; c += lanes) largest = larger(largest, load<f32>(result + c));
                float top = largest[0];
                for (int lane = 1; lane < lanes; lane++) top = largest[lane] > top ? largest[lane] : top;
                const float sum = exponentials(result, columns, made_head.mode == 1, [=](int c) { return load<f32>(result + c) - top; });
                add_row(made, made_head, query + row, row, result, sum);
            }
            mix_values(made, made_head, query, scratch.sums.data());
        }
    }
}

} // namespace vf::VF_NAMESPACE
