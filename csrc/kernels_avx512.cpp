#define SL_ISA avx512
#include "kernels.inl"
