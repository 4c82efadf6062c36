#include "file.hpp"

#include <cerrno>
#include <cmath>
#include <cstring>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "error.hpp"

namespace vf {

namespace {

constexpr char magic[] = "VFNATIVE";
constexpr uint32_t version = 1;
constexpr size_t header_bytes = 64;
constexpr uint32_t most_tensors = 1 << 16, most_layers = 1 << 14;
constexpr uint64_t most_elements = uint64_t(1) << 32;

[[noreturn]] void damaged(const char *what) { fail("the model file is damaged: %s; export it again", what); }

uint64_t elements(const TensorRecord &record) {
    uint64_t count = 1;
    for (uint64_t side : record.shape) {
        if (side == 0 || side > most_elements || count > most_elements / side) damaged("a tensor has an impossible shape");
        count *= side;
    }
    return count;
}

void check(const TensorRecord &record, size_t file_bytes) {
    bool floats = record.kind == tensor_floats && record.bits == 32;
    bool codes = record.kind == tensor_codes && record.bits >= 1 && record.bits <= 8;
    if (!(floats || codes) || record.rank < 1 || record.rank > 4) damaged("a tensor is of an unknown kind");
    for (uint32_t axis = record.rank; axis < 4; axis++)
        if (record.shape[axis] != 1) damaged("a tensor has more axes than its rank");
    uint64_t count = elements(record);
    uint64_t bytes = floats ? 4 * count : (count * record.bits + 7) / 8;
    if (record.bytes != bytes || record.offset % alignment != 0) damaged("a tensor has another size than its shape takes");
    if (record.offset > file_bytes || record.bytes > file_bytes - record.offset) damaged("a tensor lies outside of the file");
}

} // namespace

Bytes Bytes::map(const std::string &path) {
    int handle = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (handle < 0) fail("cannot open %s: %s", path.c_str(), std::strerror(errno));
    struct stat about;
    if (fstat(handle, &about) != 0 || !S_ISREG(about.st_mode) || about.st_size <= 0) {
        close(handle);
        fail("%s is no model file: it is %s; name one that vitfrost export --format native wrote", path.c_str(),
             S_ISREG(about.st_mode) ? "empty" : "no regular file");
    }
    size_t count = static_cast<size_t>(about.st_size);
    void *data = mmap(nullptr, count, PROT_READ, MAP_PRIVATE, handle, 0);
    close(handle);
    if (data == MAP_FAILED) fail("cannot map %s into memory: %s", path.c_str(), std::strerror(errno));
    Bytes bytes(data, count);
    bytes.mapped_ = true;
    return bytes;
}

Bytes::~Bytes() {
    if (mapped_) munmap(const_cast<uint8_t *>(data_), count_);
}

File::File(const Bytes &bytes) : bytes_(bytes) {
    const uint8_t *data = bytes.data();
    if (bytes.count() < header_bytes || std::memcmp(data, magic, 8) != 0)
        fail("this is no model file of the engine; name one that vitfrost export --format native wrote");
    uint32_t numbers[4];
    uint64_t file_bytes;
    std::memcpy(numbers, data + 8, sizeof numbers);
    std::memcpy(&file_bytes, data + 24, sizeof file_bytes);
    if (numbers[0] != version)
        fail("the model file has version %u, and this engine reads %u; install the engine that belongs to it, or export again", numbers[0], version);
    if (file_bytes != bytes.count()) damaged("it is not as long as it says");
    uint32_t tensors = numbers[1], layers = numbers[2];
    if (tensors > most_tensors || layers > most_layers || layers == 0) damaged("its tables have an impossible size");
    uint64_t tables = header_bytes + uint64_t(tensors) * sizeof(TensorRecord) + uint64_t(layers) * sizeof(LayerRecord);
    if (tables > bytes.count()) damaged("its tables lie outside of the file");
    tensors_.resize(tensors);
    layers_.resize(layers);
    if (tensors) std::memcpy(tensors_.data(), data + header_bytes, tensors * sizeof(TensorRecord));
    std::memcpy(layers_.data(), data + header_bytes + tensors * sizeof(TensorRecord), layers * sizeof(LayerRecord));
    for (const TensorRecord &record : tensors_) check(record, bytes.count());
    for (const LayerRecord &layer : layers_)
        for (int32_t tensor : layer.tensors)
            if (tensor < -1 || tensor >= int64_t(tensors)) damaged("a layer names a tensor that is not there");
}

int File::integer(int layer, int slot, int low, int high, const char *what) const {
    int value = layers_[static_cast<size_t>(layer)].ints[slot];
    if (value < low || value > high)
        fail("the model file is damaged: layer %d has %s %d, which should be %d to %d; export it again", layer, what, value, low, high);
    return value;
}

float File::number(int layer, int slot, const char *what) const {
    float value = layers_[static_cast<size_t>(layer)].floats[slot];
    if (!std::isfinite(value)) fail("the model file is damaged: layer %d has a %s that is not finite; export it again", layer, what);
    return value;
}

const TensorRecord &File::record(int layer, int slot, uint32_t kind, std::initializer_list<uint64_t> shape) const {
    int32_t index = layers_[static_cast<size_t>(layer)].tensors[slot];
    if (index < 0) fail("the model file is damaged: layer %d lacks its tensor %d; export it again", layer, slot);
    const TensorRecord &found = tensors_[static_cast<size_t>(index)];
    bool fits = found.kind == kind && found.rank == shape.size();
    size_t axis = 0;
    for (uint64_t side : shape) fits = fits && found.shape[axis++] == side;
    if (!fits) fail("the model file is damaged: tensor %d of layer %d has another shape or type than its layer; export it again", slot, layer);
    return found;
}

Array<float> File::floats(int layer, int slot, std::initializer_list<uint64_t> shape) const {
    const TensorRecord &found = record(layer, slot, tensor_floats, shape);
    Array<float> values(found.bytes / sizeof(float));
    std::memcpy(values.data(), bytes_.data() + found.offset, found.bytes);
    for (float value : values)
        if (!std::isfinite(value)) fail("the model file is damaged: tensor %d of layer %d is not finite; export it again", slot, layer);
    return values;
}

Array<float> File::one_or(int layer, int slot, uint64_t count) const {
    int32_t index = layers_[static_cast<size_t>(layer)].tensors[slot];
    bool single = index >= 0 && tensors_[static_cast<size_t>(index)].shape[0] == 1;
    Array<float> values = floats(layer, slot, {single ? 1 : count});
    values.resize(count, values[0]);
    return values;
}

Array<uint8_t> File::codes(int layer, int slot, std::initializer_list<uint64_t> shape, int &bits) const {
    const TensorRecord &found = record(layer, slot, tensor_codes, shape);
    bits = static_cast<int>(found.bits);
    uint64_t count = 1;
    for (uint64_t side : shape) count *= side;
    Array<uint8_t> codes(count);
    const uint8_t *packed = bytes_.data() + found.offset;
    if (bits == 8) {
        std::memcpy(codes.data(), packed, count);
        return codes;
    }
    if (bits == 4) {
        for (uint64_t pair = 0; pair < count / 2; pair++) {
            codes[2 * pair] = packed[pair] & 15;
            codes[2 * pair + 1] = packed[pair] >> 4;
        }
        if (count % 2) codes[count - 1] = packed[count / 2] & 15;
        return codes;
    }
    uint32_t mask = (1u << bits) - 1;
    for (uint64_t index = 0; index < count; index++) {
        uint64_t first = index * static_cast<uint64_t>(bits);
        uint32_t word = packed[first / 8];
        if (first % 8 + static_cast<uint64_t>(bits) > 8) word |= uint32_t(packed[first / 8 + 1]) << 8;
        codes[index] = static_cast<uint8_t>((word >> (first % 8)) & mask);
    }
    return codes;
}

} // namespace vf
