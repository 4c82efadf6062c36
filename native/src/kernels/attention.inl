// Attention of one head: a few rows of logits at a time, so that no whole map is ever held.

namespace vf::VF_NAMESPACE {

// Maps as floating-point numbers [rows, stride] times values [keys, value_stride], `depth` keys of them, to out [rows, panel_columns].
template <int R, int V> static void tile_levels(const float *levels, size_t stride, const float *values, size_t value_stride, int depth, float *out) {
    f32 sum[R][V] = {};
    for (int key = 0; key < depth; key++, values += value_stride) {
        f32 value[V];
        each<V>(VF_EACH(v) { value[v] = load<f32>(values + v * lanes); });
        each<R>(VF_EACH(row) {
            const f32 level = all(levels[row * stride + size_t(key)]);
            each<V>(VF_EACH(v) { sum[row][v] += level * value[v]; });
        });
    }
    each<R>(VF_EACH(row) { each<V>(VF_EACH(v) { save(out + row * panel_columns + v * lanes, sum[row][v]); }); });
}

// Rows whose sums of floats fit the registers; tiles of other sums may have more.
constexpr int level_rows = tile_rows < 6 ? tile_rows : 6;

using LevelTile = void (*)(const float *, size_t, const float *, size_t, int, float *);
struct LevelTiles {
    LevelTile table[level_rows][tile_vectors];
    template <int R, int V> constexpr void fill() {
        table[R - 1][V - 1] = tile_levels<R, V>;
        if constexpr (V < tile_vectors) fill<R, V + 1>();
        else if constexpr (R < level_rows) fill<R + 1, 1>();
    }
    constexpr LevelTiles() : table() { fill<1, 1>(); }
};

VF_INLINE void level_sums(const float *levels, size_t stride, int rows, const float *values, size_t value_stride, int depth, int vectors,
                          int32_t *sums) {
    static constexpr LevelTiles tiles;
    for (int row = 0; row < rows; row += level_rows) {
        const int count = rows - row < level_rows ? rows - row : level_rows;
        tiles.table[count - 1][vectors - 1](levels + size_t(row) * stride, stride, values, value_stride, depth,
                                            reinterpret_cast<float *>(sums) + row * panel_columns);
    }
}

// A row of a map for its product with values: codes of 8 bits, or two planes, or floating-point numbers.
struct MapRow {
    uint8_t *even, *odd;
    float *levels;
};

VF_INLINE int32_t largest_logit(const int32_t *logits, int columns) {
    i32 largest = all_ints(no_key);
    for (int c = 0; c < columns; c += lanes) largest = larger(largest, load<i32>(logits + c));
    return largest_of(largest);
}

// Differences of a row's logits to the largest, in units of log2, become weights 2^difference, whose sum is returned. What stays in `row` is the
// differences for a log grid, and the weights for any other.
template <int N, typename Difference> VF_INLINE void add_exponentials(float *row, int c, bool log, Difference difference, f32 (&sum)[2]) {
    f32 exponent[N], weight[N];
    each<N>(VF_EACH(n) { weight[n] = exponent[n] = difference(c + n * lanes); });
    powers_of_two(weight);
    each<N>(VF_EACH(n) {
        sum[n % 2] += weight[n];
        save(row + c + n * lanes, log ? exponent[n] : weight[n]);
    });
}
template <typename Difference> VF_INLINE float exponentials(float *row, int columns, bool log, Difference difference) {
    f32 sum[2] = {};
    int c = 0;
    for (; c + together * lanes <= columns; c += together * lanes) add_exponentials<together>(row, c, log, difference, sum);
    for (; c < columns; c += lanes) add_exponentials<1>(row, c, log, difference, sum);
    return sum_of(sum[0] + sum[1]);
}

// Codes k = round(-octave log2(map / step)) of a row, 0..zero_code: map = 2^difference / sum, so no logarithm is taken but of the sum.
VF_INLINE i32 log_codes(const float *differences, float octave, float level, f32 zero_code) {
    return nearest(smaller(larger(load<f32>(differences) * -octave + level, f32{}), zero_code));
}

// With two planes of whole numbers of 8 bits products with codes of values are exact.
VF_INLINE void log_planes(const Head &head, const float *differences, int columns, float level, const uint8_t *frozen, uint8_t *even, uint8_t *odd) {
    const f32 zero_code = all(float(head.zero_code));
    for (int c = 0; c < columns; c += lanes) save(even + c, low_bytes(log_codes(differences + c, head.octave, level, zero_code)));
    for (int c = 0; c < columns; c += 4 * lanes) {
        Bytes codes = load<Bytes>(even + c);
        if (frozen) {
            const Bytes constant = load<Bytes>(frozen + c);
            codes = constant == 255 ? codes : constant;
        }
        save(even + c, look_up(head.first_levels, codes));
        save(odd + c, look_up(head.second_levels, codes));
    }
}

constexpr float half_root = 0.70710678118654752f;

// The same levels as floating-point numbers, for grids that reach further down than whole numbers: an exponent, and 1 / sqrt2 for odd codes.
VF_INLINE void log_numbers(const Head &head, const float *differences, int columns, float level, const uint8_t *frozen, float *levels) {
    const f32 highest = all(float(head.zero_code));
    const i32 zero_code = all_ints(head.zero_code);
    for (int c = 0; c < columns; c += lanes) {
        i32 k = log_codes(differences + c, 2.0f, level, highest);
        if (frozen) {
            const i32 constant = from_bytes(load<u8>(frozen + c));
            k = constant == 255 ? k : constant;
        }
        const f32 whole = (f32)(((127 - (k >> 1)) << 23) & (k < zero_code));
        save(levels + c, (k & 1) == 0 ? whole : whole * half_root);
    }
}

// One row of a map out of what `exponentials` left and returned; returns what its numbers are multiplied with.
static float map_row(const Head &head, int query, const float *row, float sum, int columns, const MapRow &out) {
    uint8_t *const even = out.even, *const odd = out.odd;
    float scale = head.map_step;
    const uint8_t *const frozen = head.frozen ? head.frozen + size_t(query) * head.frozen_stride : nullptr;
    if (head.mode == 1) {
        const float level = head.octave * (std::log2(sum) + head.log2_step);
        if (out.levels) {
            log_numbers(head, row, columns, level, frozen, out.levels);
            return head.map_step;
        }
        log_planes(head, row, columns, level, frozen, even, odd);
        for (int c = head.tokens; c < columns; c++) odd[c] = 0;
        scale = head.map_step / 128.0f;
    } else {
        float inverse = 255.0f, zero = 0, highest = 255.0f;
        if (head.mode == 0) scale = 1.0f / (255.0f * sum);
        else inverse = 1.0f / (sum * head.map_step), zero = head.map_zero, highest = float((1 << head.map_bits) - 1);
        int done = 0;
#if VF_LANES == 16
        for (; done + 4 * lanes <= columns; done += 4 * lanes) {
            f32 y[4];
            each<4>(VF_EACH(n) { y[n] = load<f32>(row + done + n * lanes) * inverse + zero; });
            save(even + done, four_codes(y, all(highest)));
        }
#endif
        for (; done < columns; done += lanes) save(even + done, to_codes(load<f32>(row + done) * inverse + zero, all(highest)));
        if (frozen)
            for (int c = 0; c < columns; c += 4 * lanes)
                save(even + c, load<Bytes>(frozen + c) == 255 ? load<Bytes>(even + c) : Bytes{} + uint8_t(zero));
    }
    for (int c = head.tokens; c < columns; c++) even[c] = 0;
    return scale;
}

// y as codes, or y itself, for the channels of one vector, fewer than a vector where the head ends; `row`: where the query's outputs begin.
VF_INLINE void store_channels(f32 y, const HeadOutput &output, size_t row, int channel, int width) {
    const int count = width - channel < lanes ? width - channel : lanes;
    if (output.codes) {
        const u8 made = to_codes(y * output.inverse + output.zero, all(output.highest));
        uint8_t *const place = output.codes + row + channel;
        if (count == lanes) save(place, made);
        else std::memcpy(place, &made, size_t(count));
    } else {
        float *const place = output.floats + row + channel;
        if (count == lanes) save(place, y);
        else std::memcpy(place, &y, size_t(count) * sizeof(float));
    }
}

// Maps of a few queries, ready for products: scales and sums of their rows.
struct MapTile {
    int rows = 0, columns = 0;
    size_t stride = 0; // of the planes: whole vectors of bytes
    uint8_t *even = nullptr, *odd = nullptr;
    float *levels = nullptr;
    float scale[tile_rows] = {};
    int32_t even_sum[tile_rows] = {}, odd_sum[tile_rows] = {};
};

VF_INLINE MapTile map_tile(const Head &head, int rows, int columns, Scratch &scratch) {
    MapTile made;
    made.rows = rows, made.columns = columns, made.stride = (size_t(columns) + 63) / 64 * 64 + (head.window ? windowed_end : 0);
    made.even = scratch.planes.data(), made.odd = made.even + size_t(tile_rows) * made.stride;
    made.levels = head.float_values ? scratch.levels.data() : nullptr;
    return made;
}

VF_INLINE void add_row(MapTile &made, const Head &head, int query, int row, const float *numbers, float sum) {
    const size_t at = size_t(row) * made.stride;
    const MapRow place = {made.even + at, made.odd + at, made.levels ? made.levels + at : nullptr};
    made.scale[row] = map_row(head, query, numbers, sum, made.columns, place);
    if (head.value_shift == 0 || place.levels) return;
    sum_rows(place.even, 0, 1, head.tokens, &made.even_sum[row]);
    if (head.mode == 1) sum_rows(place.odd, 0, 1, head.tokens, &made.odd_sum[row]);
}

// Products of values with the levels of frozen entries that have a grid of their own.
VF_INLINE void frozen_sums(const Head &head, int query, int rows, int column, int vectors, int32_t *sums) {
    const Packed &values = head.values;
    const int8_t *panel = values.data + size_t(column) * size_t(values.depth4) * 4;
    const size_t at = size_t(query) * head.frozen_stride;
    Tile tile = tile_of(rows, vectors, values.sums);
    tile(head.frozen_even + at, head.frozen_stride, panel, values.depth4, values.chunk, nullptr, sums, panel_columns);
    tile(head.frozen_odd + at, head.frozen_stride, panel, values.depth4, values.chunk, nullptr, sums + tile_rows * panel_columns, panel_columns);
}

VF_INLINE f32 frozen_part(const Head &head, int query, const int32_t *sums) {
    const f32 even = to_floats(load<i32>(sums) + head.frozen_even_sums[query] * head.value_shift);
    const f32 odd = to_floats(load<i32>(sums + tile_rows * panel_columns) + head.frozen_odd_sums[query] * head.value_shift);
    return (even + odd * half_root) * (head.frozen_scale * head.value_scale);
}

// Maps times values, as codes for the output projection.
static void mix_values(const MapTile &made, const Head &head, int query, int32_t *sums) {
    const int channels = (head.width + lanes - 1) / lanes * lanes;
    const bool two_planes = head.mode == 1 && made.levels == nullptr;
    int32_t *odd_sums = sums + tile_rows * panel_columns;
    for (int column = 0; column < channels; column += panel_columns) {
        const int vectors = (channels - column < panel_columns ? channels - column : panel_columns) / lanes;
        if (made.levels) {
            level_sums(made.levels, made.stride, made.rows, head.float_values + column, size_t(channels), head.tokens, vectors, sums);
        } else {
            const Packed &values = head.values;
            const int8_t *panel = values.data + size_t(column) * size_t(values.depth4) * 4;
            Tile tile = tile_of(made.rows, vectors, values.sums);
            tile(made.even, made.stride, panel, values.depth4, values.chunk, nullptr, sums, panel_columns);
            if (two_planes) tile(made.odd, made.stride, panel, values.depth4, values.chunk, nullptr, odd_sums, panel_columns);
        }
        if (head.frozen_even) frozen_sums(head, query, made.rows, column, vectors, sums + 2 * tile_rows * panel_columns);
        for (int row = 0; row < made.rows; row++) {
            const size_t out = size_t(query + row) * head.output.stride;
            const float scale = made.scale[row] * head.value_scale;
            for (int v = 0; v < vectors; v++) {
                const int channel = column + v * lanes, at = row * panel_columns + v * lanes;
                f32 y = made.levels ? load<f32>(sums + at) : to_floats(load<i32>(sums + at) + made.even_sum[row] * head.value_shift);
                if (two_planes) y = y + to_floats(load<i32>(odd_sums + at) + made.odd_sum[row] * head.value_shift) * head.second_weight;
                if (head.map_zero != 0)
                    y = y - (to_floats(load<i32>(head.value_sums + channel)) + float(head.tokens * head.value_shift)) * head.map_zero;
                y = y * scale;
                if (head.frozen_even) y += frozen_part(head, query + row, sums + 2 * tile_rows * panel_columns + at);
                store_channels(y, head.output, out, channel, head.width);
            }
        }
    }
}

VF_INLINE void scores(const Head &head, int query, int rows, int32_t *logits, int columns) {
    Product made;
    made.x = head.queries + size_t(query) * head.query_stride, made.stride = head.query_stride, made.rows = rows;
    product_sums(made, head.keys, logits, size_t(columns));
}

// Each step is taken for all rows of a tile before the next, so that a row's reduction is done while the next row is under way.
static void attend(const Head &head, int first, int last, Scratch &scratch) {
    const int columns = (head.tokens + lanes - 1) / lanes * lanes;
    const bool log = head.mode == 1;
    const float t = head.logit_scale;
    int32_t *const logits = scratch.logits.data();
    for (int query = first; query < last; query += tile_rows) {
        const int rows = last - query < tile_rows ? last - query : tile_rows;
        scores(head, query, rows, logits, columns);
        MapTile made = map_tile(head, rows, columns, scratch);
        int32_t largest[tile_rows];
        float sum[tile_rows];
        for (int row = 0; row < rows; row++) largest[row] = largest_logit(logits + size_t(row) * size_t(columns), columns);
        for (int row = 0; row < rows; row++) {
            int32_t *const place = logits + size_t(row) * size_t(columns);
            const i32 top = all_ints(largest[row]);
            sum[row] = exponentials(reinterpret_cast<float *>(place), columns, log, [=](int c) { return to_floats(load<i32>(place + c) - top) * t; });
        }
        for (int row = 0; row < rows; row++)
            add_row(made, head, query + row, row, reinterpret_cast<const float *>(logits + size_t(row) * size_t(columns)), sum[row]);
        mix_values(made, head, query, scratch.sums.data());
    }
}

static void constant(const ConstantHead &head, int first, int last, Scratch &scratch) {
    const int channels = (head.width + lanes - 1) / lanes * lanes;
    int32_t *sums = scratch.sums.data();
    for (int query = first; query < last; query += tile_rows) {
        const int rows = last - query < tile_rows ? last - query : tile_rows;
        for (int column = 0; column < channels; column += panel_columns) {
            const int vectors = (channels - column < panel_columns ? channels - column : panel_columns) / lanes;
            tile_of(rows, vectors, head.values.sums)(head.map + size_t(query) * head.map_stride, head.map_stride,
                                                     head.values.data + size_t(column) * head.values.depth4 * 4, head.values.depth4,
                                                     head.values.chunk, nullptr, sums, panel_columns);
            for (int row = 0; row < rows; row++) {
                const size_t out = size_t(query + row) * head.output.stride;
                const float zero = head.row_zero[query + row], scale = head.row_scale[query + row] * head.value_scale;
                const float shifted = float(head.value_shift) * (float(head.map_sums[query + row]) - zero * float(head.tokens));
                for (int v = 0; v < vectors; v++) {
                    const int channel = column + v * lanes;
                    f32 y = to_floats(load<i32>(sums + row * panel_columns + v * lanes)) - to_floats(load<i32>(head.value_sums + channel)) * zero;
                    y = (y + shifted) * scale;
                    store_channels(y, head.output, out, channel, head.width);
                }
            }
        }
    }
}

} // namespace vf::VF_NAMESPACE
