// The C interface.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <mutex>
#include <new>

#include "error.hpp"
#include "file.hpp"
#include "forward.hpp"
#include "vitfrost.h"

using namespace vf;

struct vf_model {
    const Layers layers;
    const Forward forward;
    const size_t bytes; // of unpacked weights and of what a run takes
    Pool pool;
    Profile profile;
    std::mutex lock;
    std::vector<std::unique_ptr<Stream>> streams; // that no run uses now
    std::vector<std::unique_ptr<Worker>> workers;

    vf_model(Layers &&made, int threads)
        : layers(std::move(made)), forward(layers), bytes(layers.bytes + forward.stream_bytes() + size_t(threads) * forward.worker_bytes()),
          pool(threads), profile(layers) {}
};

namespace {

constexpr int most_threads = 256;
// Memory that a file may ask for: codes of one bit become bytes, rows of maps end at whole lines, and 65,536 tokens of 768 channels take 500 MB.
constexpr size_t memory_of_any = size_t(1) << 30, memory_of_byte = 64, most_bytes = size_t(1) << 40;

int refuse(char *message, size_t bytes, const char *text) {
    if (message && bytes) {
        std::strncpy(message, text, bytes - 1);
        message[bytes - 1] = 0;
    }
    return 1;
}

// Runs `body`, whose errors become one line.
template <typename Body> int guarded(char *message, size_t bytes, Body body) {
    try {
        body();
        return 0;
    } catch (const std::bad_alloc &) {
        return refuse(message, bytes, "there is not enough memory for the model");
    } catch (const std::exception &error) {
        return refuse(message, bytes, error.what());
    } catch (...) {
        return refuse(message, bytes, "an unknown error");
    }
}

vf_model *open_bytes(const Bytes &bytes, int threads) {
    if (threads < 1 || threads > most_threads) fail("the number of threads is %d; give 1 to %d", threads, most_threads);
    const Kernels *kernels = find_kernels(nullptr);
    const Allowance allowance(memory_of_any + memory_of_byte * std::min(bytes.count(), most_bytes));
    File file(bytes);
    return new vf_model(read_layers(file, *kernels), threads);
}

// Something of a run's own, taken from what is free or made anew, and given back.
template <typename T> class Borrowed {
  public:
    template <typename Make> Borrowed(vf_model &model, std::vector<std::unique_ptr<T>> &free, size_t count, Make make) : model_(model), free_(free) {
        {
            std::lock_guard guard(model.lock);
            while (taken_.size() < count && !free.empty()) taken_.push_back(std::move(free.back())), free.pop_back();
        }
        while (taken_.size() < count) taken_.push_back(std::make_unique<T>(make()));
    }
    ~Borrowed() {
        std::lock_guard guard(model_.lock);
        for (auto &each : taken_) free_.push_back(std::move(each));
    }
    T &operator[](int index) { return *taken_[size_t(index)]; }

  private:
    vf_model &model_;
    std::vector<std::unique_ptr<T>> &free_;
    std::vector<std::unique_ptr<T>> taken_;
};

void check_finite(const float *pixels, size_t count) {
    constexpr size_t together = 16; // side by side compilers make vectors of them
    float sums[together] = {};      // of zeros; zero times infinity is not a number, and stays none
    const size_t whole = count / together * together;
    for (size_t begin = 0; begin < whole; begin += together)
        for (size_t i = 0; i < together; i++) sums[i] += pixels[begin + i] * 0.0f;
    for (size_t i = whole; i < count; i++) sums[0] += pixels[i] * 0.0f;
    if (std::all_of(std::begin(sums), std::end(sums), [](float sum) { return sum == 0; })) return;
    for (size_t i = 0; i < count; i++)
        if (!std::isfinite(pixels[i])) fail("the pixels are not finite (number %zu); give normalized pixels", i);
}

void run(vf_model &model, const float *pixels, size_t batch, float *logits) {
    const Layers &layers = model.layers;
    const Embed &embed = layers.embed;
    const size_t picture = size_t(embed.channels) * size_t(embed.height) * size_t(embed.width), outputs = size_t(layers.outputs());
    if (batch > SIZE_MAX / sizeof(float) / std::max(picture, outputs)) fail("the batch of %zu pictures is too large", batch);
    check_finite(pixels, batch * picture);
    std::unique_lock owner(model.pool.owner(), std::try_to_lock);
    const int threads = owner.owns_lock() ? model.pool.threads() : 1;
    const size_t apart = threads > 1 ? batch / size_t(threads) * size_t(threads) : batch; // pictures that a thread has to itself
    const int streams = apart ? threads : 1;
    Borrowed<Stream> stream(model, model.streams, size_t(streams), [&] { return model.forward.make_stream(); });
    Borrowed<Worker> worker(model, model.workers, size_t(threads), [&] { return model.forward.make_worker(); });
    Barrier alone(1), together(threads);
    auto pictures = [&](int number) {
        for (size_t index = size_t(number); index < apart; index += size_t(threads))
            model.forward.run(pixels + index * picture, logits + index * outputs, stream[number], worker[number], 0, 1, alone, model.profile);
        if (apart == batch) return;
        together.wait(); // the first stream is everybody's from now on
        for (size_t index = apart; index < batch; index++) {
            model.forward.run(pixels + index * picture, logits + index * outputs, stream[0], worker[number], number, threads, together,
                              model.profile);
            together.wait();
        }
    };
    auto work = [&](int number) {
        layers.kernels->begin();
        pictures(number);
        layers.kernels->end();
    };
    if (threads == 1) work(0);
    else model.pool.run(work);
}

} // namespace

extern "C" {

int vf_open(const char *path, int32_t threads, vf_model **model, char *message, size_t message_bytes) {
    return guarded(message, message_bytes, [&] { *model = open_bytes(Bytes::map(path), threads); });
}

int vf_open_memory(const void *bytes, size_t count, int32_t threads, vf_model **model, char *message, size_t message_bytes) {
    return guarded(message, message_bytes, [&] { *model = open_bytes(Bytes(bytes, count), threads); });
}

int vf_run(vf_model *model, const float *pixels, size_t batch, float *logits, char *message, size_t message_bytes) {
    return guarded(message, message_bytes, [&] { run(*model, pixels, batch, logits); });
}

void vf_describe(const vf_model *model, vf_info *info) {
    const Layers &layers = model->layers;
    const int threads = const_cast<vf_model *>(model)->pool.threads();
    *info = {layers.embed.channels,
             layers.embed.height,
             layers.embed.width,
             layers.outputs(),
             layers.stages.front().tokens,
             int32_t(layers.steps.size()) + 2,
             threads,
             model->bytes,
             layers.kernels->name};
}

void vf_close(vf_model *model) { delete model; }

const char *vf_isas(void) { return isa_names(); }

const char *vf_version(void) { return "0.1.0"; }

void vf_profile(vf_model *model, int32_t on) {
    for (auto &each : model->profile.seconds) each = 0;
    model->profile.pictures = 0;
    model->profile.on = on != 0;
}

size_t vf_profile_rows(const vf_model *model) { return model->profile.names.size(); }

int vf_profile_row(const vf_model *model, size_t row, char *name, size_t name_bytes, double *seconds, double *macs) {
    const Profile &profile = model->profile;
    if (row >= profile.names.size()) return 1;
    refuse(name, name_bytes, profile.names[row].c_str());
    *seconds = profile.seconds[row], *macs = profile.macs[row] * double(profile.pictures);
    return 0;
}

int vf_check_product(const char *isa, int32_t rows, int32_t columns, int32_t depth, const uint8_t *x, int32_t x_bits, const uint8_t *weights,
                     const float *weight_zero, int32_t x_zero, int32_t repeat, int32_t *sums, char *message, size_t message_bytes) {
    return guarded(message, message_bytes, [&] {
        const Kernels &kernels = *find_kernels(isa);
        const size_t wide = size_t(columns), deep = size_t(depth);
        Quantizer input;
        input.bits = x_bits, input.zero = float(x_zero);
        Array<uint8_t> codes(weights, weights + wide * deep);
        Array<float> zero(weight_zero, weight_zero + wide), one(wide, 1.0f);
        Linear linear = make_linear(depth, columns, input, codes, one, zero, {}, kernels);
        const size_t stride = round_up(deep, 64), out_stride = size_t(linear.columns);
        Array<uint8_t> padded((size_t(rows) + rows_behind) * stride);
        for (size_t row = 0; row < size_t(rows); row++) std::copy_n(x + row * deep, deep, padded.data() + row * stride);
        Array<int32_t> made(size_t(rows) * out_stride);
        Product product;
        Array<int8_t> unpacked(linear.nibbles.empty() ? 0 : size_t(kernels.panel) * size_t(linear.packed.depth4) * 4);
        product.unpacked = unpacked.data();
        product.x = padded.data(), product.stride = stride, product.rows = rows;
        kernels.begin();
        for (int32_t turn = 0; turn < repeat; turn++) kernels.product_sums(product, linear.packed, made.data(), out_stride);
        kernels.end();
        for (size_t row = 0; row < size_t(rows); row++) {
            int32_t sum = 0;
            for (size_t k = 0; k < deep; k++) sum += x[row * deep + k];
            for (size_t c = 0; c < wide; c++) sums[row * wide + c] = made[row * out_stride + c] + shift_of_pair(linear.column_shift[c]) * sum;
        }
    });
}

} // extern "C"
