// The stream turned by a Hadamard matrix. As many rows as a vector has lanes go side by side, so a channel is a vector: any width is like another, and a
// row's numbers do not depend on the rows beside it.

namespace vf::VF_NAMESPACE {

constexpr int turned_together = 4; // channels that are summed up together

// V channels behind `to` of one group: sums over the group's channels with signs of a row (column) of the small matrix each.
template <int V> VF_INLINE void signed_sums(const float *from, const float *signs, int inner, int down, int across, float *to) {
    f32 sum[V] = {};
    for (int p = 0; p < inner; p++) {
        const f32 value = load<f32>(from + p * lanes);
        each<V>(VF_EACH(v) { sum[v] += value * signs[p * down + v * across]; });
    }
    each<V>(VF_EACH(v) { save(to + v * lanes, sum[v]); });
}

// The small matrix, or it transposed, on every group of channels.
static void turn_small(const Turning &turn, bool transposed, const float *from, float *to) {
    const int inner = turn.inner, down = transposed ? 1 : inner, across = transposed ? inner : 1;
    for (int group = 0; group < turn.channels; group += inner) {
        const float *const start = from + group * lanes;
        float *const end = to + group * lanes;
        int q = 0;
        for (; q + turned_together <= inner; q += turned_together)
            signed_sums<turned_together>(start, turn.small + q * across, inner, down, across, end + q * lanes);
        for (; q < inner; q++) signed_sums<1>(start, turn.small + q * across, inner, down, across, end + q * lanes);
    }
}

// The matrix of a power of two, in place: sums and differences of groups that are further and further apart.
static void turn_doubled(const Turning &turn, float *x) {
    for (int half = turn.inner; half < turn.channels; half *= 2)
        for (int start = 0; start < turn.channels; start += 2 * half)
            for (int c = start; c < start + half; c++) {
                const f32 one = load<f32>(x + c * lanes), other = load<f32>(x + (c + half) * lanes);
                save(x + c * lanes, one + other), save(x + (c + half) * lanes, one - other);
            }
}

static void turn(const Turning &turn, float *x, size_t stride, int rows, float *scratch) {
    float *const one = scratch, *const other = scratch + turn.channels * lanes;
    for (int row = 0; row < rows; row += lanes) {
        const int count = rows - row < lanes ? rows - row : lanes;
        float *const first = x + size_t(row) * stride;
        for (int r = 0; r < lanes; r++)
            for (int c = 0; c < turn.channels; c++) one[c * lanes + r] = r < count ? first[size_t(r) * stride + size_t(c)] : 0.0f;
        turn_doubled(turn, one);
        turn_small(turn, false, one, other);
        for (int c = 0; c < turn.channels; c++) save(one + c * lanes, load<f32>(other + turn.places[c] * lanes) * turn.factor[c]);
        turn_small(turn, true, one, other);
        turn_doubled(turn, other);
        for (int r = 0; r < count; r++)
            for (int c = 0; c < turn.channels; c++) first[size_t(r) * stride + size_t(c)] = other[c * lanes + r];
    }
}

} // namespace vf::VF_NAMESPACE
