// What becomes of a block of sums: y = sum scale + offset by column, an activation, and codes or floats.

namespace vf::VF_NAMESPACE {

enum class End { folded_codes, codes, add, store };
enum class Rows { alike, shifted, own }; // what rows have of their own: nothing, sums of codes for shifted weights, anything of RowTerms

// Vectors that are finished together: of a few rows, so that a processor finds work between steps that wait for each other.
#if VF_LANES == 16
constexpr int unit_vectors = tile_vectors, unit_rows = 4 / tile_vectors;
#else
constexpr int unit_vectors = 1, unit_rows = together;
#endif

// Everything is copied out of `how` first, since bytes that are stored might be any of it.
template <Activation kind, End end, Rows own> class Finisher {
  public:
    Finisher(const Product &product, const Epilogue &how)
        : terms_(product.terms), scales_(how.scale), offsets_(how.offset), stride_(how.stride), codes_(how.codes),
          floats_(end == End::add ? how.add : how.store), highest_(all(how.highest)), inverse_(all(how.inverse)), zero_(all(how.zero)) {
#if VF_LANES == 16
        if constexpr (fused_gelu) make_coded_gelu(gelu_, how.inverse, how.zero);
#endif
    }

    // Rows `row` on and columns `column` on.
    VF_MEMBER void block(const int32_t *sums, int row, int rows, int column, int vectors) {
        sums_ = sums, row_ = row, column_ = column, vectors_ = vectors;
        int next = 0;
        // Rows with terms of their own are finished one by one, which keeps the library small.
        if (own != Rows::own && vectors % unit_vectors == 0)
            for (; next + unit_rows <= rows; next += unit_rows) row_unit<unit_rows, unit_vectors>(next);
        for (; next < rows; next++) row_unit<1, 1>(next);
    }

  private:
    static constexpr bool fused_gelu = lanes == 16 && kind == Activation::gelu && end == End::codes;

    template <int R, int V> VF_MEMBER void row_unit(int row) {
        for (int v = 0; v < vectors_; v += V) part<R, V>(row, v * lanes);
    }

    template <int R, int V> VF_MEMBER void part(int row, int place) {
        const int column = column_ + place;
        f32 y[R * V], scale[V], offset[V];
        i32 shift[V];
        each<V>(VF_EACH(v) {
            scale[v] = load<f32>(scales_ + column + v * lanes), offset[v] = load<f32>(offsets_ + column + v * lanes);
#if VF_LANES == 16
            if constexpr (fused_gelu) scale[v] *= gelu_pieces, offset[v] *= gelu_pieces;
#endif
            if constexpr (own == Rows::shifted) shift[v] = load<i32>(terms_.column_shift + column + v * lanes);
        });
        each<R>(VF_EACH(r) {
            const size_t at = size_t(row_ + row + r);
            each<V>(VF_EACH(v) {
                i32 sum = load<i32>(sums_ + (row + r) * panel_columns + place + v * lanes);
                f32 row_scale = scale[v];
                if constexpr (own == Rows::shifted) sum = dot_pairs(sum, all_ints(terms_.sum[at]), shift[v]);
                if constexpr (own == Rows::own) {
                    if (terms_.zero) sum -= load<i32>(terms_.column_sums + column + v * lanes) * terms_.zero[at];
                    if (terms_.sum) sum = dot_pairs(sum, all_ints(terms_.sum[at]), load<i32>(terms_.column_shift + column + v * lanes));
                    if (terms_.scale) row_scale *= terms_.scale[at];
                }
                y[r * V + v] = to_floats(sum) * row_scale + offset[v];
            });
        });
        end_of<R, V>(y, size_t(row_ + row) * stride_ + size_t(column));
    }

    template <int R, int V> VF_MEMBER void end_of(f32 (&y)[R * V], size_t at) {
#if VF_LANES == 16
        if constexpr (fused_gelu) {
            coded_gelu(y, gelu_);
            save_codes<R, V>(codes_ + at, stride_, y, highest_);
            return;
        }
#endif
        activate<kind>(y);
        if constexpr (end == End::codes) each<R * V>(VF_EACH(n) { y[n] = y[n] * inverse_ + zero_; });
        if constexpr (end == End::codes || end == End::folded_codes) save_codes<R, V>(codes_ + at, stride_, y, highest_);
        else
            each<R>(VF_EACH(r) {
                each<V>(VF_EACH(v) {
                    float *const place = floats_ + at + size_t(r) * stride_ + v * lanes;
                    if constexpr (end == End::add) save(place, load<f32>(place) + y[r * V + v]);
                    else save(place, y[r * V + v]);
                });
            });
    }

    const RowTerms terms_;
    const float *const scales_, *const offsets_;
    const size_t stride_;
    uint8_t *const codes_;
    float *const floats_;
    const f32 highest_, inverse_, zero_;
#if VF_LANES == 16
    alignas(64) float gelu_[5][32];
#endif
    const int32_t *sums_ = nullptr;
    int row_ = 0, column_ = 0, vectors_ = 0;
};

} // namespace vf::VF_NAMESPACE
