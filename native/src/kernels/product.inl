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

// A panel of codes of 4 bits as signed bytes.
__attribute__((noinline)) static void unpack(const Packed &w, int column, int vectors, int8_t *to) {
    constexpr size_t bytes = 4 * size_t(lanes);
    const uint8_t *from = w.nibbles + size_t(column / panel_columns) * ((size_t(w.depth4) * tile_vectors + 1) / 2 * bytes);
    const int8_t *const zeros = w.zeros + size_t(column) * 4;
    const int count = w.depth4 * vectors;
    for (int n = 0, v = 0; n < count; n += 2, from += bytes, to += 2 * bytes) {
        const Bytes both = load<Bytes>(from);
        save(to, (both & 15) - load<Bytes>(zeros + size_t(v) * bytes));
        v = v + 1 == vectors ? 0 : v + 1;
        if (n + 1 < count) save(to + bytes, (both >> 4) - load<Bytes>(zeros + size_t(v) * bytes));
        v = v + 1 == vectors ? 0 : v + 1;
    }
}

// Calls each(row, rows, column, vectors, tile) over panels and tiles: weights of a panel stay in the first cache while rows pass.
template <typename Each> VF_INLINE void over_tiles(const Product &product, const Packed &w, Each each) {
    for (int column = 0; column < w.columns; column += panel_columns) {
        int vectors = (w.columns - column < panel_columns ? w.columns - column : panel_columns) / lanes;
        if (column + vectors * lanes <= product.first_column) continue;
        if (w.nibbles) unpack(w, column, vectors, product.unpacked);
        const int8_t *panel = w.nibbles ? product.unpacked : w.data + size_t(column) * size_t(w.depth4) * 4;
        const int32_t *start = w.start ? w.start + column : nullptr;
        for (int row = 0; row < product.rows; row += tile_rows) {
            int rows = product.rows - row < tile_rows ? product.rows - row : tile_rows;
            each(row, rows, column, vectors, panel, start);
        }
    }
}

template <Activation kind, End end, Rows own> static void finished(const Product &made, const Packed &w, const Epilogue &how, int32_t *sums) {
    Finisher<kind, end, own> finisher(made, how);
    over_tiles(made, w, [&](int row, int rows, int column, int vectors, const int8_t *panel, const int32_t *start) {
        tile_of(rows, vectors, w.sums)(made.x + size_t(row) * made.stride, made.stride, panel, w.depth4, w.chunk, start, sums, panel_columns);
        finisher.block(sums, row, rows, column, vectors);
    });
}

using Finished = void (*)(const Product &, const Packed &, const Epilogue &, int32_t *);

template <Activation kind, Rows own> static Finished finished_by_end(const Epilogue &how) {
    if constexpr (kind == Activation::none) {
        if (how.codes && how.folded) return finished<kind, End::folded_codes, own>;
        if (how.add) return finished<kind, End::add, own>;
    }
    return how.codes ? finished<kind, End::codes, own> : finished<kind, End::store, own>;
}

template <Rows own> static Finished finished_by(const Epilogue &how) {
    switch (how.activation) {
    case Activation::gelu: return finished_by_end<Activation::gelu, own>(how);
    case Activation::gelu_tanh: return finished_by_end<Activation::gelu_tanh, own>(how);
    case Activation::relu: return finished_by_end<Activation::relu, own>(how);
    case Activation::quick_gelu: return finished_by_end<Activation::quick_gelu, own>(how);
    default: return finished_by_end<Activation::none, own>(how);
    }
}

static void product(const Product &made, const Packed &w, const Epilogue &how, int32_t *sums) {
    const RowTerms &terms = made.terms;
    const Finished made_by = terms.scale || terms.zero ? finished_by<Rows::own>(how)
                             : terms.sum               ? finished_by<Rows::shifted>(how)
                                                       : finished_by<Rows::alike>(how);
    made_by(made, w, how, sums);
}

static void product_sums(const Product &made, const Packed &w, int32_t *sums, size_t sums_stride) {
    over_tiles(made, w, [&](int row, int rows, int column, int vectors, const int8_t *panel, const int32_t *start) {
        int32_t *out = sums + size_t(row) * sums_stride + size_t(column);
        tile_of(rows, vectors, w.sums)(made.x + size_t(row) * made.stride, made.stride, panel, w.depth4, w.chunk, start, out, sums_stride);
    });
}

} // namespace vf::VF_NAMESPACE
