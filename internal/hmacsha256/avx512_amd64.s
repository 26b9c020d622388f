#include "textflag.h"

// One vector register holds the same word of all sixteen messages. Z0 to Z15 are the last sixteen words W of
// the message schedule of FIPS 180-4, section 6.2.2, Z16 to Z23 the working variables a to h.
#define A Z16
#define B Z17
#define C Z18
#define D Z19
#define E Z20
#define F Z21
#define G Z22
#define H Z23

// LOAD reads the block of one message.
#define LOAD(lane, row) \
	MOVQ (lane*8)(SI), AX \
	VMOVDQU32 (AX)(BX*1), row

// PAIRS takes four words of four messages, and makes four registers with one word of all four, for each 128 bits.
// They are in r0 to r3, and go by t0 to t3.
#define PAIRS(r0, r1, r2, r3, t0, t1, t2, t3) \
	VPUNPCKLDQ r1, r0, t0 \
	VPUNPCKHDQ r1, r0, t1 \
	VPUNPCKLDQ r3, r2, t2 \
	VPUNPCKHDQ r3, r2, t3 \
	VPUNPCKLQDQ t2, t0, r0 \
	VPUNPCKHQDQ t2, t0, r1 \
	VPUNPCKLQDQ t3, t1, r2 \
	VPUNPCKHQDQ t3, t1, r3

// GATHER takes 128 bits of each of u0 to u3, and makes of them four words of all sixteen messages, where they were. It
// uses t0 to t3.
#define GATHER(u0, u1, u2, u3, t0, t1, t2, t3) \
	VSHUFI32X4 $0x44, u1, u0, t0 \
	VSHUFI32X4 $0xee, u1, u0, t1 \
	VSHUFI32X4 $0x44, u3, u2, t2 \
	VSHUFI32X4 $0xee, u3, u2, t3 \
	VSHUFI32X4 $0x88, t2, t0, u0 \
	VSHUFI32X4 $0xdd, t2, t0, u1 \
	VSHUFI32X4 $0x88, t3, t1, u2 \
	VSHUFI32X4 $0xdd, t3, t1, u3

// ROUND is one round. Instead of moving the variables, the next one names them in another order. DX points to the
// constants of the sixteen rounds that it is one of.
#define ROUND(n, w, a, b, c, d, e, f, g, h) \
	VPADDD.BCST (n*4)(DX), w, Z24 \
	VPRORD $6, e, Z25 \
	VPRORD $11, e, Z26 \
	VPRORD $25, e, Z27 \
	VMOVDQA32 e, Z28 \
	VPADDD Z24, h, h \
	VPTERNLOGD $0x96, Z26, Z25, Z27 \
	VPTERNLOGD $0xca, g, f, Z28 \
	VPRORD $2, a, Z29 \
	VPADDD Z27, h, h \
	VPRORD $13, a, Z30 \
	VPRORD $22, a, Z31 \
	VPADDD Z28, h, h \
	VMOVDQA32 a, Z25 \
	VPTERNLOGD $0x96, Z30, Z29, Z31 \
	VPTERNLOGD $0xe8, c, b, Z25 \
	VPADDD h, d, d \
	VPADDD Z31, h, h \
	VPADDD Z25, h, h

// NEXT replaces a word of the schedule by the one sixteen later. w1, w9 and w14 come so much later.
#define NEXT(w, w1, w9, w14) \
	VPRORD $7, w1, Z24 \
	VPRORD $18, w1, Z25 \
	VPSRLD $3, w1, Z26 \
	VPRORD $17, w14, Z27 \
	VPRORD $19, w14, Z28 \
	VPSRLD $10, w14, Z29 \
	VPADDD w9, w, w \
	VPTERNLOGD $0x96, Z25, Z24, Z26 \
	VPTERNLOGD $0x96, Z28, Z27, Z29 \
	VPADDD Z26, w, w \
	VPADDD Z29, w, w

// FOLD adds a variable to the state.
#define FOLD(offset, v) \
	VPADDD offset(DI), v, v \
	VMOVDQU32 v, offset(DI)

// func compressAVX512(s *state, data *[16]*byte, blocks uint64)
TEXT ·compressAVX512(SB), NOSPLIT, $0-24
	MOVQ s+0(FP), DI
	MOVQ data+8(FP), SI
	MOVQ blocks+16(FP), CX
	XORQ BX, BX

block:
	LOAD(0, Z0)
	LOAD(1, Z1)
	LOAD(2, Z2)
	LOAD(3, Z3)
	LOAD(4, Z4)
	LOAD(5, Z5)
	LOAD(6, Z6)
	LOAD(7, Z7)
	LOAD(8, Z8)
	LOAD(9, Z9)
	LOAD(10, Z10)
	LOAD(11, Z11)
	LOAD(12, Z12)
	LOAD(13, Z13)
	LOAD(14, Z14)
	LOAD(15, Z15)
	ADDQ $64, BX

	PAIRS(Z0, Z1, Z2, Z3, Z24, Z25, Z26, Z27)
	PAIRS(Z4, Z5, Z6, Z7, Z28, Z29, Z30, Z31)
	PAIRS(Z8, Z9, Z10, Z11, Z24, Z25, Z26, Z27)
	PAIRS(Z12, Z13, Z14, Z15, Z28, Z29, Z30, Z31)
	GATHER(Z0, Z4, Z8, Z12, Z24, Z25, Z26, Z27)
	GATHER(Z1, Z5, Z9, Z13, Z28, Z29, Z30, Z31)
	GATHER(Z2, Z6, Z10, Z14, Z24, Z25, Z26, Z27)
	GATHER(Z3, Z7, Z11, Z15, Z28, Z29, Z30, Z31)

	// The words of a message are big-endian.
	VMOVDQU32 ·swap(SB), Z24
	VPSHUFB Z24, Z0, Z0
	VPSHUFB Z24, Z1, Z1
	VPSHUFB Z24, Z2, Z2
	VPSHUFB Z24, Z3, Z3
	VPSHUFB Z24, Z4, Z4
	VPSHUFB Z24, Z5, Z5
	VPSHUFB Z24, Z6, Z6
	VPSHUFB Z24, Z7, Z7
	VPSHUFB Z24, Z8, Z8
	VPSHUFB Z24, Z9, Z9
	VPSHUFB Z24, Z10, Z10
	VPSHUFB Z24, Z11, Z11
	VPSHUFB Z24, Z12, Z12
	VPSHUFB Z24, Z13, Z13
	VPSHUFB Z24, Z14, Z14
	VPSHUFB Z24, Z15, Z15

	VMOVDQU32 0(DI), A
	VMOVDQU32 64(DI), B
	VMOVDQU32 128(DI), C
	VMOVDQU32 192(DI), D
	VMOVDQU32 256(DI), E
	VMOVDQU32 320(DI), F
	VMOVDQU32 384(DI), G
	VMOVDQU32 448(DI), H

	LEAQ ·constants(SB), DX
	MOVQ $3, R8

rounds:
	ROUND(0, Z0, A, B, C, D, E, F, G, H)
	NEXT(Z0, Z1, Z9, Z14)
	ROUND(1, Z1, H, A, B, C, D, E, F, G)
	NEXT(Z1, Z2, Z10, Z15)
	ROUND(2, Z2, G, H, A, B, C, D, E, F)
	NEXT(Z2, Z3, Z11, Z0)
	ROUND(3, Z3, F, G, H, A, B, C, D, E)
	NEXT(Z3, Z4, Z12, Z1)
	ROUND(4, Z4, E, F, G, H, A, B, C, D)
	NEXT(Z4, Z5, Z13, Z2)
	ROUND(5, Z5, D, E, F, G, H, A, B, C)
	NEXT(Z5, Z6, Z14, Z3)
	ROUND(6, Z6, C, D, E, F, G, H, A, B)
	NEXT(Z6, Z7, Z15, Z4)
	ROUND(7, Z7, B, C, D, E, F, G, H, A)
	NEXT(Z7, Z8, Z0, Z5)
	ROUND(8, Z8, A, B, C, D, E, F, G, H)
	NEXT(Z8, Z9, Z1, Z6)
	ROUND(9, Z9, H, A, B, C, D, E, F, G)
	NEXT(Z9, Z10, Z2, Z7)
	ROUND(10, Z10, G, H, A, B, C, D, E, F)
	NEXT(Z10, Z11, Z3, Z8)
	ROUND(11, Z11, F, G, H, A, B, C, D, E)
	NEXT(Z11, Z12, Z4, Z9)
	ROUND(12, Z12, E, F, G, H, A, B, C, D)
	NEXT(Z12, Z13, Z5, Z10)
	ROUND(13, Z13, D, E, F, G, H, A, B, C)
	NEXT(Z13, Z14, Z6, Z11)
	ROUND(14, Z14, C, D, E, F, G, H, A, B)
	NEXT(Z14, Z15, Z7, Z12)
	ROUND(15, Z15, B, C, D, E, F, G, H, A)
	NEXT(Z15, Z0, Z8, Z13)
	ADDQ $64, DX
	DECQ R8
	JNE rounds

	ROUND(0, Z0, A, B, C, D, E, F, G, H)
	ROUND(1, Z1, H, A, B, C, D, E, F, G)
	ROUND(2, Z2, G, H, A, B, C, D, E, F)
	ROUND(3, Z3, F, G, H, A, B, C, D, E)
	ROUND(4, Z4, E, F, G, H, A, B, C, D)
	ROUND(5, Z5, D, E, F, G, H, A, B, C)
	ROUND(6, Z6, C, D, E, F, G, H, A, B)
	ROUND(7, Z7, B, C, D, E, F, G, H, A)
	ROUND(8, Z8, A, B, C, D, E, F, G, H)
	ROUND(9, Z9, H, A, B, C, D, E, F, G)
	ROUND(10, Z10, G, H, A, B, C, D, E, F)
	ROUND(11, Z11, F, G, H, A, B, C, D, E)
	ROUND(12, Z12, E, F, G, H, A, B, C, D)
	ROUND(13, Z13, D, E, F, G, H, A, B, C)
	ROUND(14, Z14, C, D, E, F, G, H, A, B)
	ROUND(15, Z15, B, C, D, E, F, G, H, A)

	FOLD(0, A)
	FOLD(64, B)
	FOLD(128, C)
	FOLD(192, D)
	FOLD(256, E)
	FOLD(320, F)
	FOLD(384, G)
	FOLD(448, H)

	DECQ CX
	JNE block
	VZEROUPPER
	RET
