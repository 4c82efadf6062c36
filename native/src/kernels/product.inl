// Products of codes with packed weights, and what is done with their sums. Rows of codes lie in memory up to a whole tile, whatever they are.

namespace vf::VF_NAMESPACE {

#if defined(VF_DOT_AVX2)
// The same with sums of 16 bits for `chunk` steps: with x_max and w_max a step adds at most 2 x_max w_max to each, and chunk = 32,767 / (2 x_max w_max).
template <int R, int V>
VF_INLINE void tile_in_chunks(const uint8_t *x, size_t stride, const int8_t *w, int depth4, int chunk, const int32_t *start, int32_t *out,
                              size_t out_stride) {
    each<R>(VF_EACH(row) { each<V>(VF_EACH(v) { save(out + row * out_stride + v * lanes, start ? load<i32>(start + v * lanes) : i32{}); }); });
    for (int begin = 0; begin < depth4; begin += chunk) {
        int end = begin + chunk < depth4 ? begin + chunk : depth4;
        i16 sum[R][V] = {};
        for (int step = begin; step < end; step++) {
            i32 weights[V];
            each<V>(VF_EACH(v) { weights[v] = load<i32>(w + (size_t(step) * V + v) * lanes * 4); });
            each<R>(VF_EACH(row) {
                i32 value = four(x + row * stride + 4 * size_t(step));
                each<V>(VF_EACH(v) { sum[row][v] = dot_chunk(sum[row][v], value, weights[v]); });
            });
        }
        each<R>(VF_EACH(row) {
            each<V>(VF_EACH(v) {
                int32_t *place = out + row * out_stride + v * lanes;
                save(place, load<i32>(place) + widen(sum[row][v]));
            });
        });
    }
}
#endif

// The sums of R rows and V vectors of columns into out [R][out_stride].
template <int R, int V, Sums sums>
static void tile(const uint8_t *x, size_t stride, const int8_t *w, int depth4, [[maybe_unused]] int chunk, const int32_t *start, int32_t *out,
                 size_t out_stride) {
#if defined(VF_TILES_AMX)
    return amx_tile<V>(x, stride, w, depth4, start, R, out, out_stride);
#elif defined(VF_DOT_AVX2)
    if constexpr (sums == Sums::chunked) return tile_in_chunks<R, V>(x, stride, w, depth4, chunk, start, out, out_stride);
#endif
#if !defined(VF_TILES_AMX)
    i32 sum[R][V];
    each<V>(VF_EACH(v) {
        i32 first = start ? load<i32>(start + v * lanes) : i32{};
        each<R>(VF_EACH(row) { sum[row][v] = first; });
    });
    for (int step = 0; step < depth4; step++) {
        i32 weights[V];
        each<V>(VF_EACH(v) { weights[v] = load<i32>(w + (size_t(step) * V + v) * lanes * 4); });
        each<R>(VF_EACH(row) {
            i32 value = four(x + row * stride + 4 * size_t(step));
            each<V>(VF_EACH(v) { sum[row][v] = dot<sums>(sum[row][v], value, weights[v]); });
        });
    }
    each<R>(VF_EACH(row) { each<V>(VF_EACH(v) { save(out + row * out_stride + v * lanes, sum[row][v]); }); });
#endif
}

using Tile = void (*)(const uint8_t *, size_t, const int8_t *, int, int, const int32_t *, int32_t *, size_t);

template <Sums sums> struct Tiles {
    Tile table[tile_rows][tile_vectors];
    template <int R, int V> constexpr void fill() {
        table[R - 1][V - 1] = tile<R, V, sums>;
        if constexpr (V < tile_vectors) fill<R, V + 1>();
        else if constexpr (R < tile_rows) fill<R + 1, 1>();
    }
    constexpr Tiles() : table() { fill<1, 1>(); }
};

static Tile tile_of(int rows, int vectors, Sums sums) {
#if defined(VF_DOT_AVX2)
    static constexpr Tiles<Sums::direct> direct;
    static constexpr Tiles<Sums::chunked> chunked;
    if (sums == Sums::direct) return direct.table[rows - 1][vectors - 1];
    if (sums == Sums::chunked) return chunked.table[rows - 1][vectors - 1];
#endif
    (void)sums;
    static constexpr Tiles<Sums::split> split;
    return split.table[rows - 1][vectors - 1];
}

// Calls each(row, rows, column, vectors, tile) over panels and tiles: weights of a panel stay in the first cache while rows pass.
template <typename Each> VF_INLINE void over_tiles(const Product &product, const Packed &w, Each each) {
    for (int column = 0; column < w.columns; column += panel_columns) {
        int vectors = (w.columns - column < panel_columns ? w.columns - column : panel_columns) / lanes;
        if (column + vectors * lanes <= product.first_column) continue;
        const int8_t *panel = w.data + size_t(column) * w.depth4 * 4;
        const int32_t *start = w.start ? w.start + column : nullptr;
        for (int row = 0; row < product.rows; row += tile_rows) {
            int rows = product.rows - row < tile_rows ? product.rows - row : tile_rows;
            each(row, rows, column, vectors, panel, start);
        }
    }
}

enum class End { folded_codes, codes, add, store };
enum class Rows { alike, shifted, own }; // what rows have of their own: nothing, sums of codes for shifted weights, anything of RowTerms

// N rows of one vector of columns.
template <Activation kind, End end, Rows own, int N>
VF_INLINE void finish_rows(const int32_t *sums, int row, int column, const RowTerms &terms, f32 scale, f32 offset, uint8_t *codes, float *floats,
                           size_t stride, f32 inverse, f32 zero, f32 highest) {
    f32 y[N];
    i32 shift = {};
    if constexpr (own == Rows::shifted) shift = load<i32>(terms.column_shift + column);
    each<N>(VF_EACH(r) {
        i32 sum = load<i32>(sums + r * panel_columns);
        f32 row_scale = scale;
        if constexpr (own == Rows::shifted) sum = dot_pairs(sum, all_ints(terms.sum[row + r]), shift);
        if constexpr (own == Rows::own) {
            if (terms.zero) sum -= load<i32>(terms.column_sums + column) * terms.zero[row + r];
            if (terms.sum) sum = dot_pairs(sum, all_ints(terms.sum[row + r]), load<i32>(terms.column_shift + column));
            if (terms.scale) row_scale = scale * terms.scale[row + r];
        }
        y[r] = to_floats(sum) * row_scale + offset;
    });
    activate<kind>(y);
    each<N>(VF_EACH(r) {
        const size_t out = size_t(r) * stride;
        if constexpr (end == End::folded_codes) save(codes + out, to_codes(y[r], highest));
        if constexpr (end == End::codes) save(codes + out, to_codes(y[r] * inverse + zero, highest));
        if constexpr (end == End::add) save(floats + out, load<f32>(floats + out) + y[r]);
        if constexpr (end == End::store) save(floats + out, y[r]);
    });
}

// Everything is copied out of `how` first, since bytes that are stored might be any of it.
template <Activation kind, End end, Rows own>
static void finish(const int32_t *sums, int row, int rows, int column, int vectors, const Product &product, const Epilogue &how) {
    const RowTerms terms = product.terms;
    const float *const scales = how.scale + column, *const offsets = how.offset + column;
    const size_t stride = how.stride, at = size_t(row) * stride + size_t(column);
    uint8_t *const codes = how.codes + at;
    float *const floats = (end == End::add ? how.add : how.store) + at;
    const f32 highest = all(how.highest), inverse = all(how.inverse), zero = all(how.zero);
    for (int v = 0; v < vectors; v++) {
        const int place = v * lanes;
        const f32 scale = load<f32>(scales + place), offset = load<f32>(offsets + place);
        auto part = [&]<int N>(std::integral_constant<int, N>, int r) __attribute__((always_inline)) {
            const size_t out = size_t(r) * stride + size_t(place);
            finish_rows<kind, end, own, N>(sums + r * panel_columns + place, row + r, column + place, terms, scale, offset, codes + out, floats + out,
                                           stride, inverse, zero, highest);
        };
        int r = 0;
        // Rows with terms of their own are finished one by one, which keeps the library small.
        if constexpr (own != Rows::own)
            for (; r + together <= rows; r += together) part(std::integral_constant<int, together>{}, r);
        for (; r < rows; r++) part(std::integral_constant<int, 1>{}, r);
    }
}

using Finish = void (*)(const int32_t *, int, int, int, int, const Product &, const Epilogue &);

template <Activation kind, Rows own> static Finish finish_by_end(const Epilogue &how) {
    if constexpr (kind == Activation::none) {
        if (how.codes && how.folded) return finish<kind, End::folded_codes, own>;
        if (how.add) return finish<kind, End::add, own>;
    }
    return how.codes ? finish<kind, End::codes, own> : finish<kind, End::store, own>;
}

template <Rows own> static Finish finish_of(const Epilogue &how) {
    switch (how.activation) {
    case Activation::gelu: return finish_by_end<Activation::gelu, own>(how);
    case Activation::gelu_tanh: return finish_by_end<Activation::gelu_tanh, own>(how);
    case Activation::relu: return finish_by_end<Activation::relu, own>(how);
    case Activation::quick_gelu: return finish_by_end<Activation::quick_gelu, own>(how);
    default: return finish_by_end<Activation::none, own>(how);
    }
}

static void product(const Product &made, const Packed &w, const Epilogue &how, int32_t *sums) {
    const RowTerms &terms = made.terms;
    Finish end = terms.scale || terms.zero ? finish_of<Rows::own>(how) : terms.sum ? finish_of<Rows::shifted>(how) : finish_of<Rows::alike>(how);
    over_tiles(made, w, [&](int row, int rows, int column, int vectors, const int8_t *panel, const int32_t *start) {
        tile_of(rows, vectors, w.sums)(made.x + size_t(row) * made.stride, made.stride, panel, w.depth4, w.chunk, start, sums, panel_columns);
        end(sums, row, rows, column, vectors, made, how);
    });
}

static void product_sums(const Product &made, const Packed &w, int32_t *sums, size_t sums_stride) {
    over_tiles(made, w, [&](int row, int rows, int column, int vectors, const int8_t *panel, const int32_t *start) {
        int32_t *out = sums + size_t(row) * sums_stride + size_t(column);
        tile_of(rows, vectors, w.sums)(made.x + size_t(row) * made.stride, made.stride, panel, w.depth4, w.chunk, start, out, sums_stride);
    });
}

} // namespace vf::VF_NAMESPACE
