// The kernels of one instruction set; the including file defines SL_ISA.
#include "forward.h"

namespace SL_ISA {
bool forward(const sl_lookup& l, const sl_summary& out, int64_t b, int64_t h, int64_t panel, int64_t panels) {
    return forward_panel(l, out, b, h, panel, panels);
}
}  // namespace SL_ISA
