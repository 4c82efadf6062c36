// Heads with a bias for every pair of query and key, and a mask beside it (Swin's windows): a bias is a float, and so logits are no integers.

namespace vf::VF_NAMESPACE {

// Sums of a row become logits, of which the largest is returned.
VF_INLINE float biased_logits(const Head &head, int query, int32_t *sums, int columns) {
    const float t = head.logit_scale;
    const float *const bias = head.bias + size_t(query) * head.bias_stride;
    const float *const mask = head.mask ? head.mask + size_t(query) * head.bias_stride : nullptr;
    float *const logits = reinterpret_cast<float *>(sums);
    f32 most = all(-1e30f);
    for (int c = 0; c < columns; c += lanes) {
        f32 logit = to_floats(load<i32>(sums + c)) * t + load<f32>(bias + c);
        if (mask) logit = logit + load<f32>(mask + c);
        most = larger(most, logit);
        save(logits + c, logit);
    }
    return largest_of(most);
}

static void attend_biased(const Head &head, int first, int last, Scratch &scratch) {
    const int columns = (head.tokens + lanes - 1) / lanes * lanes;
    int32_t *const sums = scratch.logits.data();
    float *const logits = reinterpret_cast<float *>(sums);
    for (int query = first; query < last; query += tile_rows) {
        const int rows = last - query < tile_rows ? last - query : tile_rows;
        scores(head, query, rows, sums, columns);
        MapTile made = map_tile(head, rows, columns, scratch);
        float top[tile_rows], sum[tile_rows];
        for (int row = 0; row < rows; row++) top[row] = biased_logits(head, query + row, sums + size_t(row) * size_t(columns), columns);
        for (int row = 0; row < rows; row++) {
            float *const place = logits + size_t(row) * size_t(columns);
            const float most = top[row];
            sum[row] = exponentials(place, columns, head.mode == 1, [=](int c) { return load<f32>(place + c) - most; });
        }
        for (int row = 0; row < rows; row++) add_row(made, head, query + row, row, logits + size_t(row) * size_t(columns), sum[row]);
        mix_values(made, head, query, scratch.sums.data());
    }
}

} // namespace vf::VF_NAMESPACE
