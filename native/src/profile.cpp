// The rows of a profile: the steps of a model and their multiply-accumulates.
#include "forward.hpp"

namespace vf {

namespace {

double macs_of(const Linear &linear, double rows) { return rows * linear.inputs * linear.outputs; }

} // namespace

Profile::Profile(const Layers &layers) {
    auto add = [&](const std::string &name, double count) {
        names.push_back(name), macs.push_back(count);
        return names.size() - 1;
    };
    embedding = add("embed", macs_of(*layers.embed.linear, layers.embed.patches()));
    for (const Step &step : layers.steps) {
        std::string name = "layer " + std::to_string(first.size());
        if (step.kind == layer_attention) {
            const Attention &found = layers.attention[size_t(step.index)];
            const double windows = found.windows, product = double(found.width) * windows * found.tokens * found.tokens_out;
            const double taps = double(found.local_height) * found.local_width * found.grid_height * found.grid_width * found.width;
            const int whole = found.heads - (found.local_height ? found.constant_heads : 0);
            double projections = found.first.linear ? macs_of(*found.first.linear, windows * found.queries) : 0;
            if (found.reduced()) projections += macs_of(*found.keys.linear, found.tokens);
            if (found.reduction) projections += macs_of(*found.reduction, found.tokens);
            first.push_back(add(name + " queries, keys, values", projections));
            add(name + " maps", product * (whole + found.logit_heads) + taps * (found.heads - whole));
            add(name + " projection", macs_of(*found.proj, windows * found.tokens_out));
        } else if (step.kind == layer_feed_forward) {
            const FeedForward &found = layers.feed_forward[size_t(step.index)];
            double count = macs_of(*found.first, found.tokens_out) + macs_of(*found.second, found.tokens_out);
            if (found.convolution) count += double(found.convolution->weights.size()) * found.tokens_out;
            first.push_back(add(name + " feed-forward", count + (found.third ? macs_of(*found.third, found.tokens_out) : 0)));
        } else if (step.kind == layer_downsample) {
            const double tokens = layers.stages[size_t(step.stage) + 1].tokens;
            first.push_back(add(name + " downsampling", macs_of(*layers.downsample[size_t(step.index)].linear, tokens)));
        } else {
            first.push_back(add(name + (step.kind == layer_turn_step ? " turn" : " norm"), 0));
        }
    }
    classifier = add("classifier", layers.classifier.linear ? macs_of(*layers.classifier.linear, 1) : 0);
    seconds = std::vector<std::atomic<double>>(names.size());
}

} // namespace vf
