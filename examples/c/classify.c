/* Classify a picture with vitfrost's engine: classify model.vfn picture.ppm mean_r mean_g mean_b std_r std_g std_b
 * The picture is a binary PPM (P6, 255) of the model's size; mean and std are those of export.json, in units of the full range. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vitfrost.h>

static int fail(const char *what, const char *why) {
    fprintf(stderr, "classify: %s: %s\n", what, why);
    return 2;
}

/* Reads a number of a PPM's header, after blanks and comments; -1 where there is none. */
static int number(FILE *file) {
    int value = -1, c = fgetc(file);
    while (c == ' ' || c == '\t' || c == '\r' || c == '\n' || c == '#') {
        if (c == '#')
            while (c != '\n' && c != EOF) c = fgetc(file);
        else c = fgetc(file);
    }
    for (; c >= '0' && c <= '9' && value < 65536; c = fgetc(file)) value = (value < 0 ? 0 : 10 * value) + c - '0';
    return value; /* one blank behind it has been read */
}

/* Normalized pixels [3, height, width]; NULL where the file is no picture of this size. */
static float *read_picture(const char *path, const vf_info *info, char **norm) {
    FILE *file = fopen(path, "rb");
    const size_t area = (size_t)info->width * (size_t)info->height;
    float *pixels = malloc(3 * area * sizeof *pixels);
    unsigned char *bytes = malloc(3 * area);
    int sound = file && pixels && bytes && fgetc(file) == 'P' && fgetc(file) == '6' && number(file) == info->width &&
                number(file) == info->height && number(file) == 255 && fread(bytes, 3, area, file) == area;
    for (size_t color = 0; sound && color < 3; color++) {
        const float mean = strtof(norm[color], NULL), std = strtof(norm[3 + color], NULL);
        for (size_t place = 0; place < area; place++) pixels[color * area + place] = ((float)bytes[3 * place + color] / 255 - mean) / std;
    }
    if (file) fclose(file);
    free(bytes);
    if (sound) return pixels;
    free(pixels);
    return NULL;
}

int main(int count, char **words) {
    vf_model *model;
    vf_info info;
    char message[512];
    if (count != 9) return fail("usage", "classify model.vfn picture.ppm mean_r mean_g mean_b std_r std_g std_b");
    if (vf_open(words[1], 1, &model, message, sizeof message)) return fail(words[1], message);
    vf_describe(model, &info);
    float *pixels = info.channels == 3 ? read_picture(words[2], &info, words + 3) : NULL;
    float *logits = malloc((size_t)info.classes * sizeof *logits);
    int status = 0, best = 0;
    if (!pixels || !logits) {
        snprintf(message, sizeof message, "no binary PPM (P6, 255) of %d x %d pixels", info.width, info.height);
        status = fail(words[2], message);
    } else if (vf_run(model, pixels, 1, logits, message, sizeof message)) {
        status = fail(words[1], message);
    } else {
        for (int class = 1; class < info.classes; class++)
            if (logits[class] > logits[best]) best = class;
        printf("%d %g\n", best, logits[best]);
    }
    free(logits);
    free(pixels);
    vf_close(model);
    return status;
}
