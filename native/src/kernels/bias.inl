// Heads with a bias for every pair of query and key, and a mask beside it (Swin's windows): a bias is a float, and so logits are no integers.

namespace vf::VF_NAMESPACE {

static void attend_biased(const Head &head, int first, int last, Scratch &scratch) {
    const int columns = (head.tokens + lanes - 1) / lanes * lanes;
    const float t = head.logit_scale;
    int32_t *const logits = scratch.logits.data();
    for (int query = first; query < last; query += tile_rows) {
        const int rows = last - query < tile_rows ? last - query : tile_rows;
        scores(head, query, rows, logits, columns);
        MapTile made = map_tile(head, rows, columns, scratch);
        float sum[tile_rows];
        for (int row = 0; row < rows; row++) {
            int32_t *const integers = logits + size_t(row) * size_t(columns);
            float *const numbers = reinterpret_cast<float *>(integers);
            const size_t at = size_t(query + row) * head.bias_stride;
            f32 most = all(-1e30f);
            for (int c = 0; c < columns; c += lanes) {
                f32 logit = to_floats(load<i32>(integers + c)) * t + load<f32>(head.bias + at + c);
                if (head.mask) logit = logit + load<f32>(head.mask + at + c);
                most = larger(most, logit);
                save(numbers + c, logit);
            }
            float top = most[0];
            for (int lane = 1; lane < lanes; lane++) top = most[lane] > top ? most[lane] : top;
            sum[row] = exponentials(numbers, columns, head.mode == 1, [=](int c) { return load<f32>(numbers + c) - top; });
        }
        for (int row = 0; row < rows; row++)
            add_row(made, head, query + row, row, reinterpret_cast<const float *>(logits + size_t(row) * size_t(columns)), sum[row]);
        mix_values(made, head, query, scratch.sums.data());
    }
}

} // namespace vf::VF_NAMESPACE
