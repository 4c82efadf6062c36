// The stream turned by a layer of its own, where no weights can hold its rotation: read and run.
#include <cmath>

#include "error.hpp"
#include "forward.hpp"
#include "reader.hpp"

namespace vf {

constexpr int most_inner = 64, most_lanes = 16;
static_assert(2 * most_lanes <= most_chunk && most_chunk <= most_chunk_of_large); // rows of floats that a worker has

void Reader::turn_step(int layer) {
    Turn made;
    const int channels = stage().channels;
    made.inner = integer(layer, 0, 1, most_inner, "rows of signs");
    const int outer = channels / made.inner;
    if (channels % made.inner || (outer & (outer - 1)))
        fail("the model file is damaged: the turn of layer %d does not fit %d channels; export it again", layer, channels);
    made.small = file_.floats(layer, 0, {uint64_t(made.inner), uint64_t(made.inner)});
    for (float sign : made.small)
        if (std::fabs(sign) != 1) fail("the model file is damaged: layer %d has a sign that is none; export it again", layer);
    const Array<float> places = file_.floats(layer, 1, {uint64_t(channels)});
    made.factor = file_.floats(layer, 2, {uint64_t(channels)});
    made.places.resize(size_t(channels));
    for (size_t c = 0; c < made.places.size(); c++) {
        if (!(places[c] >= 0) || places[c] >= float(channels) || places[c] != std::floor(places[c]))
            fail("the model file is damaged: layer %d names a channel that is not there; export it again", layer);
        if (made.factor[c] != 0 && std::fabs(made.factor[c]) != 1)
            fail("the model file is damaged: layer %d has a sign that is none; export it again", layer);
        made.places[c] = int32_t(places[c]), made.factor[c] /= float(channels);
    }
    made_.bytes += 4 * (made.small.size() + 2 * made.places.size());
    add_step(layer_turn_step, made_.turns.size());
    made_.turns.push_back(std::move(made));
}

void Forward::turn(const Turn &layer, int number, Stream &stream, Worker &worker, Rows rows) const {
    const Stage &stage = layers_.stages[size_t(number)];
    const Turning how = {stage.channels, layer.inner, layer.small.data(), layer.places.data(), layer.factor.data()};
    kernels_.turn(how, stream.rows(stage, number, rows.first), stage.stride, rows.last - rows.first, worker.floats.data());
}

} // namespace vf
