// Windows of attention: which token is where, and which must not see each other.
#include <algorithm>

#include "layers.hpp"

namespace vf {

namespace {

// Of a row of the shifted grid: those that came round the edge are the last region, and the rest of the last window the one before.
int region(int place, int length, int window, int shift) {
    const int whole = (length + window - 1) / window * window;
    if (!shift || place >= whole - shift) return 2;
    return place >= whole - window ? 1 : 0;
}

} // namespace

Array<int32_t> Windows::order() const {
    Array<int32_t> made;
    made.reserve(size_t(rows()) * size_t(columns()) * size_t(area()));
    for (int window = 0; window < rows() * columns(); window++)
        for (int place = 0; place < area(); place++) {
            const int y = window / columns() * height + place / width, x = window % columns() * width + place % width;
            const bool inside = y < grid_height && x < grid_width;
            made.push_back(inside ? (y + down) % grid_height * grid_width + (x + right) % grid_width : -1);
        }
    return made;
}

void Windows::add_masks(float between, size_t stride, Array<float> &masks, std::vector<int> &mask_of) const {
    mask_of.assign(size_t(rows()) * size_t(columns()), -1);
    if (!down && !right) return;
    std::vector<std::vector<int>> known;
    for (int window = 0; window < rows() * columns(); window++) {
        std::vector<int> regions;
        for (int place = 0; place < area(); place++) {
            const int y = window / columns() * height + place / width, x = window % columns() * width + place % width;
            regions.push_back(3 * region(y, grid_height, height, down) + region(x, grid_width, width, right));
        }
        if (std::all_of(regions.begin(), regions.end(), [&](int each) { return each == regions[0]; })) continue;
        size_t kind = size_t(std::find(known.begin(), known.end(), regions) - known.begin());
        mask_of[size_t(window)] = int(kind);
        if (kind < known.size()) continue;
        known.push_back(regions);
        const size_t begin = masks.size(), count = size_t(area());
        masks.resize(begin + count * stride);
        for (size_t query = 0; query < count; query++)
            for (size_t key = 0; key < count; key++)
                if (regions[query] != regions[key]) masks[begin + query * stride + key] = between;
    }
}

} // namespace vf
