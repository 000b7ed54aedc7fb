#define SL_ISA base
#include "kernels.inl"
