// Frozen heads whose constant map is a small kernel over the patch grid: a few multiplications a token, however many tokens there are.

namespace vf::VF_NAMESPACE {

constexpr int local_vectors = 4; // of channels that are summed up together

// The first tap that falls on the picture, of a patch with so many rows (columns) before it, and the one behind the last, with so many after it.
static int first_tap(int before, int apart, int taps) { return taps / 2 > before / apart ? taps / 2 - before / apart : 0; }
static int end_tap(int after, int apart, int taps) { return taps / 2 > after / apart ? taps / 2 + after / apart + 1 : taps; }

static void float_values(const uint8_t *codes, size_t codes_stride, int tokens, int width, float scale, float zero, float *values, size_t stride,
                         int first, float *sums) {
    for (size_t c = 0; c < stride; c++) sums[c] = 0;
    for (int token = 0; token < tokens; token++) {
        const uint8_t *from = codes + size_t(token) * codes_stride;
        float *to = values + size_t(token) * stride;
        for (int c = 0; c < width; c += lanes) {
            u8 part = {};
            if (width - c >= lanes) part = load<u8>(from + c);
            else std::memcpy(&part, from + c, size_t(width - c));
            const f32 value = (to_floats(from_bytes(part)) - zero) * scale;
            save(to + c, value);
            if (token >= first) save(sums + c, load<f32>(sums + c) + value);
        }
    }
}

// Sums of V vectors of channels for one patch. Taps fall on the picture, which reaches over the grid by its border.
template <int V> VF_INLINE void near_patch(const LocalHead &head, int row, int column, const float *picture, f32 (&sum)[V]) {
    const int border = head.border(), apart = head.apart, width = head.grid_width + 2 * border;
    const int top = first_tap(row + border, apart, head.kernel_height), left = first_tap(column + border, apart, head.kernel_width);
    const int bottom = end_tap(head.grid_height - 1 - row + border, apart, head.kernel_height);
    const int end = end_tap(head.grid_width - 1 - column + border, apart, head.kernel_width);
    const size_t step = size_t(apart) * head.value_stride;
    for (int y = top; y < bottom; y++) {
        const float *weights = head.kernel + size_t(y) * size_t(head.kernel_width);
        const int down = row + border + (y - head.kernel_height / 2) * apart, right = column + border + (left - head.kernel_width / 2) * apart;
        const float *from = picture + (size_t(down) * size_t(width) + size_t(right)) * head.value_stride;
        for (int x = left; x < end; x++, from += step) each<V>(VF_EACH(v) { sum[v] += load<f32>(from + v * lanes) * weights[x]; });
    }
}

// A line of patches `step` apart, spread by triangles of `apart` patches to each side: as many more come out before and behind as they spread.
static void spread(const float *from, size_t step, int count, int apart, int channels, float *to, size_t to_step) {
    const int border = apart - 1;
    for (int out = 0; out < count + 2 * border; out++, to += to_step) {
        const int middle = out - border, first = middle > border ? middle - border : 0, last = middle + border < count ? middle + border : count - 1;
        for (int c = 0; c < channels; c += lanes) {
            f32 sum = {};
            for (int in = first; in <= last; in++) {
                const float weight = float(apart - (in > middle ? in - middle : middle - in)) / float(apart);
                sum += load<f32>(from + size_t(in) * step + c) * weight;
            }
            save(to + c, sum);
        }
    }
}

static void smooth(const LocalHead &head, float *between, float *picture) {
    const size_t stride = head.value_stride, row = size_t(head.grid_width) * stride, wide = size_t(head.grid_width + 2 * head.border()) * stride;
    const float *const patches = head.values + size_t(head.prefix) * stride;
    for (int x = 0; x < head.grid_width; x++)
        spread(patches + size_t(x) * stride, row, head.grid_height, head.apart, int(stride), between + size_t(x) * stride, row);
    for (int y = 0; y < head.grid_height + 2 * head.border(); y++)
        spread(between + size_t(y) * row, stride, head.grid_width, head.apart, int(stride), picture + size_t(y) * wide, stride);
}

template <int V> static void local_channels(const LocalHead &head, int first, int last, int channel) {
    const float *const values = head.values + channel;
    for (int query = first; query < last; query++) {
        f32 sum[V] = {};
        if (query < head.prefix) {
            const float *weights = head.rows + size_t(query) * size_t(head.tokens);
            for (int token = 0; token < head.tokens; token++)
                each<V>(VF_EACH(v) { sum[v] += load<f32>(values + size_t(token) * head.value_stride + v * lanes) * weights[token]; });
        } else {
            const int patch = query - head.prefix;
            near_patch<V>(head, patch / head.grid_width, patch % head.grid_width, head.picture + channel, sum);
            const float scale = head.scale[patch], shared = head.shared[patch];
            each<V>(VF_EACH(v) { sum[v] = sum[v] * scale + load<f32>(head.value_sums + channel + v * lanes) * shared; });
            for (int token = 0; token < head.prefix; token++) {
                const float weight = head.columns[size_t(patch) * size_t(head.prefix) + size_t(token)];
                each<V>(VF_EACH(v) { sum[v] += load<f32>(values + size_t(token) * head.value_stride + v * lanes) * weight; });
            }
        }
        const size_t out = size_t(query) * head.output.stride;
        each<V>(VF_EACH(v) { store_channels(sum[v], head.output, out, channel + v * lanes, head.width); });
    }
}

static void local(const LocalHead &head, int first, int last) {
    int channel = 0;
    for (; channel + local_vectors * lanes <= head.width; channel += local_vectors * lanes) local_channels<local_vectors>(head, first, last, channel);
    for (; channel < head.width; channel += lanes) local_channels<1>(head, first, last, channel);
}

} // namespace vf::VF_NAMESPACE
