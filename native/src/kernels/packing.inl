// Keys and values of a head as columns of products.

namespace vf::VF_NAMESPACE {

// Logits of what is no key: far below all others, and far above the smallest integer.
constexpr int32_t no_key = -(1 << 30);

// Up to a vector's bytes of a key's codes less their shift, zeros behind them.
VF_INLINE Bytes key_part(const uint8_t *from, int count, Bytes shifts) {
    if (count >= 4 * lanes) return load<Bytes>(from) - shifts;
    Bytes read = shifts;
    std::memcpy(&read, from, size_t(count));
    return read - shifts;
}

// Keys as columns of a product: [panel][width / 4][key][4], codes less `shift`. start: what sums over codes of queries begin with, so that
// the queries' zero point is taken off. A zero point of keys would add the same to all logits of a row, which a softmax does not feel.
static void pack_keys(const uint8_t *codes, size_t stride, int tokens, int width, int shift, int8_t *packed, int query_zero, int32_t *start) {
    const int columns = (tokens + lanes - 1) / lanes * lanes, depth4 = padded_depth4(width);
    const Bytes shifts = Bytes{} + uint8_t(shift);
    for (int column = 0; column < columns; column += lanes) {
        const int first = column / panel_columns * panel_columns, wide = columns - first < panel_columns ? columns - first : panel_columns;
        int8_t *const place = packed + size_t(first) * size_t(depth4) * 4 + size_t(column - first) * 4;
        i32 sums = {};
        for (int step = 0; step < depth4; step += lanes) {
            i32 keys[lanes];
            for (int key = 0; key < lanes; key++)
                keys[key] = column + key < tokens ? (i32)key_part(codes + size_t(column + key) * stride + 4 * step, width - 4 * step, shifts) : i32{};
            transpose(keys);
            for (int i = 0; i < lanes && step + i < depth4; i++) {
                sums = dot<Sums::split>(sums, all_ints(0x01010101), keys[i]);
                save(place + size_t(step + i) * size_t(wide) * 4, keys[i]);
            }
        }
        sums = sums * -query_zero;
        for (int lane = 0; lane < lanes; lane++) start[column + lane] = column + lane < tokens ? sums[lane] : no_key;
    }
}

// Values as columns of a product over tokens: [panel][tokens / 4][channel][4], codes less `shift`; sums [channels] over tokens.
static void pack_values(const uint8_t *codes, size_t stride, int tokens, int width, int shift, int8_t *packed, int32_t *sums) {
    int columns = (width + lanes - 1) / lanes * lanes, depth4 = padded_depth4(tokens);
    for (int column = 0; column < columns; column += panel_columns) {
        int wide = columns - column < panel_columns ? columns - column : panel_columns;
        int8_t *panel = packed + size_t(column) * depth4 * 4;
        for (int vector = 0; vector < wide; vector += lanes) {
            int channel = column + vector;
            int count = width - channel < lanes ? width - channel : lanes;
            i32 total = {};
            for (int step = 0; step < depth4; step++) {
                i32 four = {};
                for (int i = 0; i < 4 && 4 * step + i < tokens; i++) {
                    u8 row = {};
                    const uint8_t *from = codes + size_t(4 * step + i) * stride + channel;
                    if (count == lanes) row = load<u8>(from);
                    else std::memcpy(&row, from, size_t(count));
                    i32 value = from_bytes(row) - shift;
                    total += value;
                    four |= (value & 255) << (8 * i);
                }
                save(panel + (size_t(step) * wide + vector) * 4, four);
            }
            if (sums) save(sums + channel, total);
        }
    }
}

} // namespace vf::VF_NAMESPACE
