// Opens and runs damaged model files: `fuzz SEEDFILE COUNT [RANDOM SEED]` changes numbers of a sound file, one to eight at a time, where they hurt most; with
// COUNT 0, or without one, it takes the file as it is (for a fuzzer that makes files itself). To be built with sanitizers; a crash is a finding.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <random>
#include <vector>

#include "vitfrost.h"

namespace {

using Bytes = std::vector<unsigned char>;

constexpr size_t header = 64, tensor_record = 64, layer_record = 384;
constexpr uint64_t most_pixels = 1 << 18;

struct Outcomes {
    size_t opened = 0, refused = 0;
};

void try_bytes(const Bytes &bytes, Outcomes &outcomes) {
    char message[512] = "";
    vf_model *model = nullptr;
    if (vf_open_memory(bytes.data(), bytes.size(), 1, &model, message, sizeof message) != 0) {
        outcomes.refused++;
        if (message[0] == 0 || std::strchr(message, '\n')) std::abort(); // one line, always
        return;
    }
    outcomes.opened++;
    vf_info info;
    vf_describe(model, &info);
    const uint64_t count = uint64_t(info.channels) * uint64_t(info.height) * uint64_t(info.width);
    if (count <= most_pixels) {
        std::vector<float> pixels(count, 0.5f), logits(size_t(info.classes));
        (void)vf_run(model, pixels.data(), 1, logits.data(), message, sizeof message);
    }
    vf_close(model);
}

uint32_t read_number(const Bytes &bytes, size_t at) {
    uint32_t value = 0;
    std::memcpy(&value, bytes.data() + at, 4);
    return value;
}

void change(Bytes &bytes, std::mt19937 &random) {
    static const int32_t numbers[] = {0,   1,   -1,   2,     3,     4,       7,         8,         9,  16,         64,        255,
                                      256, 257, 4096, 65535, 65536, 1 << 24, INT32_MAX, INT32_MIN, -2, 0x7f800000, 0x7fc00000};
    const size_t tables = header + read_number(bytes, 12) * tensor_record + read_number(bytes, 16) * layer_record;
    const size_t reach = random() % 8 ? std::min(tables, bytes.size()) : bytes.size();
    const size_t at = random() % (reach / 4) * 4;
    int32_t value;
    switch (random() % 4) {
    case 0: value = int32_t(random()); break;
    case 1: value = int32_t(read_number(bytes, at) + uint32_t(random() % 5) - 2u); break;
    case 2: {
        bytes[at + random() % 4] ^= static_cast<unsigned char>(1u << (random() % 8));
        return;
    }
    default: value = numbers[random() % std::size(numbers)];
    }
    std::memcpy(bytes.data() + at, &value, 4);
}

} // namespace

int main(int count, char **arguments) {
    if (count < 2) return std::fprintf(stderr, "usage: fuzz FILE [COUNT [SEED]]\n"), 2;
    std::ifstream file(arguments[1], std::ios::binary);
    const Bytes sound((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    if (sound.size() < header) return std::fprintf(stderr, "%s is no model file\n", arguments[1]), 2;
    const long turns = count > 2 ? std::atol(arguments[2]) : 0;
    std::mt19937 random(count > 3 ? unsigned(std::atol(arguments[3])) : 0u);
    Outcomes outcomes;
    if (turns == 0) {
        try_bytes(sound, outcomes);
        return 0;
    }
    for (long turn = 0; turn < turns; turn++) {
        Bytes bytes = sound;
        for (unsigned changes = 1 + random() % 8; changes > 0; changes--) change(bytes, random);
        if (random() % 16 == 0) bytes.resize(random() % bytes.size());
        try_bytes(bytes, outcomes);
    }
    std::printf("%ld files: %zu refused, %zu opened\n", turns, outcomes.refused, outcomes.opened);
    return 0;
}
