// Runs a model on pixels from a file: `logits MODEL PIXELS COUNT` reads COUNT pictures of float32 and prints the instructions and every logit.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "vitfrost.h"

int main(int count, char **arguments) {
    if (count < 4) return std::fprintf(stderr, "usage: logits MODEL PIXELS COUNT\n"), 2;
    char message[512];
    vf_model *model = nullptr;
    if (vf_open(arguments[1], 2, &model, message, sizeof message) != 0) return std::fprintf(stderr, "%s\n", message), 1;
    vf_info info;
    vf_describe(model, &info);
    const size_t pictures = size_t(std::atol(arguments[3])), picture = size_t(info.channels) * size_t(info.height) * size_t(info.width);
    std::vector<float> pixels(pictures * picture), logits(pictures * size_t(info.classes));
    std::FILE *file = std::fopen(arguments[2], "rb");
    if (file == nullptr || std::fread(pixels.data(), sizeof(float), pixels.size(), file) != pixels.size())
        return std::fprintf(stderr, "%s has too few pixels\n", arguments[2]), 1;
    std::fclose(file);
    if (vf_run(model, pixels.data(), pictures, logits.data(), message, sizeof message) != 0) return std::fprintf(stderr, "%s\n", message), 1;
    std::printf("%s\n", info.isa);
    for (float logit : logits) std::printf("%.9g\n", double(logit));
    vf_close(model);
    return 0;
}
