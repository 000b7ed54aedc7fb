// The kernels of one instruction set; the including file defines SL_ISA.
#include "backward.h"
#include "backward_few.h"
#include "decode.h"
#include "entmax.h"
#include "fold.h"
#include "forward.h"
#include "received.h"
#include "recurrence.h"

namespace SL_ISA {

bool forward(const sl_lookup& l, const sl_summary& out, int64_t b, int64_t h, int64_t panel, int64_t panels,
             std::atomic<uint8_t>* checked) {
    return forward_panel(l, out, b, h, panel, panels, checked);
}

bool entmax(const sl_lookup& l, const sl_outcome& out, int64_t b, int64_t h, int64_t panel, int64_t panels, std::atomic<uint8_t>* checked) {
    return l.rule == SL_SPARSEMAX ? entmax_panel<1>(l, out, b, h, panel, panels, checked) : entmax_panel<2>(l, out, b, h, panel, panels, checked);
}

bool backward(const sl_lookup& l, const sl_upstream& up, const sl_gradients& out, int64_t b, int64_t g, int64_t part, int64_t block0,
              int64_t block1) {
    return backward_part(l, up, out, b, g, part, block0, block1);
}

bool backward_of_few(const sl_lookup& l, const sl_upstream& up, const sl_gradients& out, int64_t b, int64_t g) {
    return backward_few(l, up, out, b, g);
}

bool received(const sl_lookup& l, const float* max_logit, const float* inverse_z, float* out, int64_t b, int64_t h, int64_t block0, int64_t block1) {
    return received_part(l, max_logit, inverse_z, out, b, h, block0, block1);
}

bool decode(const sl_lookup& l, const sl_part& part, int64_t b, int64_t g, int64_t key0, int64_t key1) {
    return decode_part(l, part, b, g, key0, key1);
}

// Merges the parts of one key-value head and writes what is read from them; parts[0] is used up.
void finish(const sl_lookup& l, const sl_summary& out, int64_t b, int64_t g, sl_part* parts, int64_t count) {
    const int64_t rows = l.heads / l.kv_heads * l.queries, wide = padded(l.value_width);
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t p = 1; p < count; ++p) merge_row(parts[p], r, wide, parts[0]);
    write_rows(l, out, (b * l.heads + g * (l.heads / l.kv_heads)) * l.queries, rows, parts[0].moments, parts[0].average, wide, 0);
}

void fold(const sl_fold& f, int64_t row0, int64_t row1) { fold_rows(f, row0, row1); }

void recurrence(const sl_sequence& s, int64_t b, int64_t h) { recur(s, b, h); }

}  // namespace SL_ISA
