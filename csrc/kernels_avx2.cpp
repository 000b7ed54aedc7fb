#define SL_ISA avx2
#include "kernels.inl"
