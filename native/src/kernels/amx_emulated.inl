// The instructions of AMX in plain C++, so that its kernels can be tested on any processor with AVX-512.

namespace vf::VF_NAMESPACE {

struct EmulatedTiles {
    uint8_t rows[8], data[8][16][64];
    uint16_t bytes[8];
    bool ready = false;
};
static thread_local EmulatedTiles emulated;

// Everything that the processor raises a fault for ends the program here.
static void must(bool sound) {
    if (!sound) __builtin_trap();
}

static void emulate_configure(const void *place) {
    const uint8_t *from = static_cast<const uint8_t *>(place);
    must(from[0] == 1 && uintptr_t(place) % 64 == 0);
    std::memcpy(emulated.bytes, from + 16, 16), std::memcpy(emulated.rows, from + 48, 8);
    for (int tile = 0; tile < 8; tile++) must(emulated.rows[tile] <= 16 && emulated.bytes[tile] <= 64 && emulated.bytes[tile] % 4 == 0);
    std::memset(emulated.data, 0, sizeof emulated.data);
    emulated.ready = true;
}
static void emulate_load(int tile, const void *place, size_t stride) {
    must(emulated.ready);
    std::memset(emulated.data[tile], 0, sizeof emulated.data[tile]);
    for (size_t row = 0; row < emulated.rows[tile]; row++)
        std::memcpy(emulated.data[tile][row], static_cast<const uint8_t *>(place) + row * stride, emulated.bytes[tile]);
}
static void emulate_store(int tile, void *place, size_t stride) {
    must(emulated.ready);
    for (size_t row = 0; row < emulated.rows[tile]; row++)
        std::memcpy(static_cast<uint8_t *>(place) + row * stride, emulated.data[tile][row], emulated.bytes[tile]);
}
static void emulate_zero(int tile) {
    must(emulated.ready);
    std::memset(emulated.data[tile], 0, sizeof emulated.data[tile]);
}
static void emulate_dot(int sums, int codes, int weights) {
    must(emulated.ready && emulated.rows[sums] == emulated.rows[codes] && emulated.bytes[sums] == emulated.bytes[weights]);
    must(emulated.bytes[codes] == 4 * emulated.rows[weights]);
    for (int row = 0; row < emulated.rows[sums]; row++)
        for (int column = 0; column < emulated.bytes[sums] / 4; column++) {
            int32_t sum;
            std::memcpy(&sum, emulated.data[sums][row] + 4 * column, 4);
            for (int step = 0; step < emulated.rows[weights]; step++)
                for (int i = 0; i < 4; i++)
                    sum += int32_t(emulated.data[codes][row][4 * step + i]) * int8_t(emulated.data[weights][step][4 * column + i]);
            std::memcpy(emulated.data[sums][row] + 4 * column, &sum, 4);
        }
}

} // namespace vf::VF_NAMESPACE

#define VF_TILE_CONFIGURE(place) emulate_configure(place)
#define VF_TILE_RELEASE() (emulated.ready = false)
#define VF_TILE_ZERO(tile) emulate_zero(tile)
#define VF_TILE_LOAD(tile, place, stride) emulate_load(tile, place, stride)
#define VF_TILE_STORE(tile, place, stride) emulate_store(tile, place, stride)
#define VF_TILE_DOT(sums, codes, weights) emulate_dot(sums, codes, weights)
