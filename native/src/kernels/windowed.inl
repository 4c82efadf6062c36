// Heads whose patches look at a window of the patch grid and at the prefix tokens. Logits are taken for the rows of the grid that the windows of a few queries
// reach; of each query those in its window go side by side through the softmax, and back to their places before the product with values.

namespace vf::VF_NAMESPACE {

// Columns (of keys) first..last, in panels for logits and in whole depths for the product with values.
struct Reach {
    int first, last;
    int first_column() const { return first / panel_columns * panel_columns; }
    int first_depth() const { return first / depth_unit * depth_unit; }
};

// What a query sees: all prefix tokens, and `wide` patches from `left` on in `down` rows of the grid from `top` on.
struct Window {
    int top, left, down, wide;
};

static Window window_of(const Head &head, int query) {
    const int half = head.window / 2, y = (query - head.prefix) / head.grid_width, x = (query - head.prefix) % head.grid_width;
    const int top = y - half > 0 ? y - half : 0, left = x - half > 0 ? x - half : 0;
    const int bottom = y + half < head.grid_height - 1 ? y + half : head.grid_height - 1;
    const int right = x + half < head.grid_width - 1 ? x + half : head.grid_width - 1;
    return {top, left, bottom - top + 1, right - left + 1};
}

// Calls each(place in the row of tokens, place among those that are seen, count) for runs of tokens.
template <typename Each> VF_INLINE int over_seen(const Head &head, const Window &window, Each each) {
    int seen = 0;
    if (head.prefix) each(0, 0, head.prefix);
    seen += head.prefix;
    for (int row = 0; row < window.down; row++, seen += window.wide)
        each(head.prefix + (window.top + row) * head.grid_width + window.left, seen, window.wide);
    return seen;
}

// Whole vectors are copied: what is behind a run is written over by the next one, or is of no use.
VF_INLINE void gather(int32_t *to, const int32_t *from, int count) {
    for (int i = 0; i < count; i += lanes) save(to + i, load<i32>(from + i));
}
// The other way round, zeros are written behind a run. Runs come in their order, so the next one lies behind them.
template <typename V, typename T> VF_INLINE void scatter(T *to, const T *from, int count) {
    V place;
    for (int i = 0; i < lanes; i++) place[i] = T(i);
    for (int i = 0; i < count; i += lanes) {
        const V value = load<V>(from + i);
        save(to + i, count - i >= lanes ? value : place < T(count - i) ? value : V{});
    }
}

VF_INLINE void near_scores(const Head &head, int query, int rows, const Reach &reach, int columns, int32_t *logits) {
    for (int column = reach.first_column(); column < reach.last; column += panel_columns) {
        const int vectors = (columns - column < panel_columns ? columns - column : panel_columns) / lanes;
        tile_of(rows, vectors, head.keys.sums)(head.queries + size_t(query) * head.query_stride, head.query_stride,
                                               head.keys.data + size_t(column) * size_t(head.keys.depth4) * 4, head.keys.depth4, head.keys.chunk,
                                               head.keys.start + column, logits + column, size_t(columns));
    }
}

// Sums of one plane of codes times values, over the prefix and over the rows of the grid that are reached.
VF_INLINE void near_sums(const Packed &values, const uint8_t *codes, size_t stride, int rows, int column, int vectors, const Reach (&reach)[2],
                         int32_t *sums) {
    const int8_t *panel = values.data + size_t(column) * size_t(values.depth4) * 4;
    for (int part = 0; part < 2; part++) {
        const int first = reach[part].first_depth();
        tile_of(rows, vectors, values.sums)(codes + first, stride, panel + size_t(first) * size_t(vectors) * lanes,
                                            padded_depth4(reach[part].last - first), values.chunk, nullptr, sums + part * tile_rows * panel_columns,
                                            panel_columns);
    }
}
VF_INLINE void near_levels(const float *values, size_t value_stride, const MapTile &made, int vectors, const Reach (&reach)[2], int32_t *sums) {
    for (int part = 0; part < 2; part++) {
        const int first = reach[part].first_depth();
        level_sums(made.levels + first, made.stride, made.rows, values + size_t(first) * value_stride, value_stride, reach[part].last - first,
                   vectors, sums + part * tile_rows * panel_columns);
    }
}

static void mix_near(const MapTile &made, const Head &head, int query, const Reach (&reach)[2], int32_t *sums) {
    const int channels = (head.width + lanes - 1) / lanes * lanes;
    const bool two_planes = head.mode == 1 && made.levels == nullptr;
    int32_t *odd_sums = sums + 2 * tile_rows * panel_columns;
    for (int column = 0; column < channels; column += panel_columns) {
        const int vectors = (channels - column < panel_columns ? channels - column : panel_columns) / lanes;
        if (made.levels) near_levels(head.float_values + column, size_t(channels), made, vectors, reach, sums);
        else near_sums(head.values, made.even, made.stride, made.rows, column, vectors, reach, sums);
        if (two_planes) near_sums(head.values, made.odd, made.stride, made.rows, column, vectors, reach, odd_sums);
        auto both = [](const int32_t *from) { return load<i32>(from) + load<i32>(from + tile_rows * panel_columns); };
        for (int row = 0; row < made.rows; row++)
            for (int v = 0; v < vectors; v++) {
                const int channel = column + v * lanes, at = row * panel_columns + v * lanes;
                f32 y = made.levels ? load<f32>(sums + at) + load<f32>(sums + tile_rows * panel_columns + at)
                                    : to_floats(both(sums + at) + made.even_sum[row] * head.value_shift);
                if (two_planes) y = y + to_floats(both(odd_sums + at) + made.odd_sum[row] * head.value_shift) * head.second_weight;
                store_channels(y * (made.scale[row] * head.value_scale), head.output, size_t(query + row) * head.output.stride, channel, head.width);
            }
    }
}

// The map of one query into its row of the tile, whose places outside of the window are zero already.
static void near_row(const Head &head, int query, int row, int32_t *logits, MapTile &made, Scratch &scratch) {
    const Window window = window_of(head, query);
    int32_t *const near = scratch.near_logits.data();
    Head seen = head;
    seen.tokens = over_seen(head, window, [&](int place, int among, int count) { gather(near + among, logits + place, count); });
    const int columns = (seen.tokens + lanes - 1) / lanes * lanes;
    for (int c = seen.tokens; c < columns; c++) near[c] = no_key;
    const i32 top = all_ints(largest_logit(near, columns));
    const float t = head.logit_scale;
    float *const numbers = reinterpret_cast<float *>(near);
    const float sum = exponentials(numbers, columns, head.mode == 1, [=](int c) { return to_floats(load<i32>(near + c) - top) * t; });
    MapTile alone = made;
    alone.columns = columns, alone.even = scratch.near_codes.data(), alone.odd = alone.even + scratch.near_codes.size() / 2;
    alone.levels = made.levels ? scratch.near_levels.data() : nullptr;
    alone.even_sum[0] = alone.odd_sum[0] = 0;
    add_row(alone, seen, query, 0, numbers, sum);
    made.scale[row] = alone.scale[0], made.even_sum[row] = alone.even_sum[0], made.odd_sum[row] = alone.odd_sum[0];
    const size_t at = size_t(row) * made.stride;
    over_seen(head, window, [&](int place, int among, int count) {
        if (made.levels) return scatter<f32>(made.levels + at + place, alone.levels + among, count);
        scatter<u8>(made.even + at + place, alone.even + among, count);
        if (head.mode == 1) scatter<u8>(made.odd + at + place, alone.odd + among, count);
    });
}

static void attend_windowed(const Head &head, int first, int last, Scratch &scratch) {
    if (first < head.prefix) attend(head, first, last < head.prefix ? last : head.prefix, scratch);
    const int columns = (head.tokens + lanes - 1) / lanes * lanes, half = head.window / 2;
    int32_t *const logits = scratch.logits.data();
    for (int query = first > head.prefix ? first : head.prefix; query < last; query += tile_rows) {
        const int rows = last - query < tile_rows ? last - query : tile_rows;
        const int up = (query - head.prefix) / head.grid_width - half, down = (query + rows - 1 - head.prefix) / head.grid_width + half + 1;
        Reach reach[2] = {
            {0, head.prefix},
            {head.prefix + (up > 0 ? up : 0) * head.grid_width, head.prefix + (down < head.grid_height ? down : head.grid_height) * head.grid_width}};
        if (reach[1].first_depth() < head.prefix) reach[1].first = 0, reach[0].last = 0; // the prefix is part of it
        near_scores(head, query, rows, reach[1], columns, logits);
        if (reach[0].last > 0 && reach[1].first_column() > 0) near_scores(head, query, rows, reach[0], columns, logits);
        MapTile made = map_tile(head, rows, columns, scratch);
        for (int row = 0; row < rows; row++) {
            const size_t at = size_t(row) * made.stride;
            for (const Reach &part : reach) {
                const size_t from = at + size_t(part.first_depth()), count = size_t(padded_depth4(part.last - part.first_depth())) * 4;
                if (made.levels) std::memset(made.levels + from, 0, count * sizeof(float));
                else std::memset(made.even + from, 0, count), std::memset(made.odd + from, 0, count);
            }
            near_row(head, query + row, row, logits + size_t(row) * size_t(columns), made, scratch);
        }
        mix_near(made, head, query, reach, scratch.sums.data());
    }
}

} // namespace vf::VF_NAMESPACE
