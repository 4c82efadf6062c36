// Opens a model, runs it and closes it, over and over: `cycles FILE COUNT`. Prints how much memory the process holds after a tenth and at the end; to be
// run under a leak checker as well.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "vitfrost.h"

namespace {

// Memory of this process in KiB, and the most that it ever had.
long memory(const char *name) {
    std::FILE *file = std::fopen("/proc/self/status", "r");
    char line[256];
    long found = 0;
    while (file && std::fgets(line, sizeof line, file))
        if (std::strncmp(line, name, std::strlen(name)) == 0) found = std::atol(line + std::strlen(name));
    if (file) std::fclose(file);
    return found;
}

} // namespace

int main(int count, char **arguments) {
    if (count < 3) return std::fprintf(stderr, "usage: cycles FILE COUNT\n"), 2;
    const long before = memory("VmRSS:"), turns = std::atol(arguments[2]);
    long early = 0;
    for (long turn = 0; turn < turns; turn++) {
        char message[512];
        vf_model *model = nullptr;
        if (vf_open(arguments[1], 2, &model, message, sizeof message) != 0) return std::fprintf(stderr, "%s\n", message), 1;
        vf_info info;
        vf_describe(model, &info);
        std::vector<float> pixels(size_t(info.channels) * size_t(info.height) * size_t(info.width), 0.25f), logits(size_t(info.classes));
        if (vf_run(model, pixels.data(), 1, logits.data(), message, sizeof message) != 0) return std::fprintf(stderr, "%s\n", message), 1;
        vf_close(model);
        if (turn == turns / 10) early = memory("VmRSS:");
    }
    std::printf("KiB before %ld, after a tenth %ld, at the end %ld, at most %ld\n", before, early, memory("VmRSS:"), memory("VmHWM:"));
    return 0;
}
