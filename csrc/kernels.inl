// The kernels of one instruction set; the including file defines SL_ISA.
#include "backward.h"
#include "fold.h"
#include "forward.h"

namespace SL_ISA {

bool forward(const sl_lookup& l, const sl_summary& out, int64_t b, int64_t h, int64_t panel, int64_t panels,
             std::atomic<uint8_t>* checked) {
    return forward_panel(l, out, b, h, panel, panels, checked);
}

bool backward(const sl_lookup& l, const sl_upstream& up, const sl_gradients& out, int64_t b, int64_t g, int64_t part, int64_t block0,
              int64_t block1) {
    return backward_part(l, up, out, b, g, part, block0, block1);
}

void fold(const sl_fold& f, int64_t row0, int64_t row1) { fold_rows(f, row0, row1); }

}  // namespace SL_ISA
