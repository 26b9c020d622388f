#include "textflag.h"
#include "rounds_amd64.h"

// One vector register holds the same word of all eight messages. Z0 to Z15 are the
// working vector v of RFC 7693, section 3.2, Z16 to Z31 the words of the block.
#define M0 Z16
#define M1 Z17
#define M2 Z18
#define M3 Z19
#define M4 Z20
#define M5 Z21
#define M6 Z22
#define M7 Z23
#define M8 Z24
#define M9 Z25
#define M10 Z26
#define M11 Z27
#define M12 Z28
#define M13 Z29
#define M14 Z30
#define M15 Z31

#define XORROR(n, d0, d1, d2, d3, s0, s1, s2, s3) \
	VPXORQ s0, d0, d0 \
	VPXORQ s1, d1, d1 \
	VPXORQ s2, d2, d2 \
	VPXORQ s3, d3, d3 \
	VPRORQ $n, d0, d0 \
	VPRORQ $n, d1, d1 \
	VPRORQ $n, d2, d2 \
	VPRORQ $n, d3, d3

// MIX is the function G, four at a time: of the columns of v, or of its diagonals.
#define MIX(b0, b1, b2, b3, c0, c1, c2, c3, d0, d1, d2, d3, x0, y0, x1, y1, x2, y2, x3, y3) \
	ADD(Z0, Z1, Z2, Z3, x0, x1, x2, x3) \
	ADD(Z0, Z1, Z2, Z3, b0, b1, b2, b3) \
	XORROR(32, d0, d1, d2, d3, Z0, Z1, Z2, Z3) \
	ADD(c0, c1, c2, c3, d0, d1, d2, d3) \
	XORROR(24, b0, b1, b2, b3, c0, c1, c2, c3) \
	ADD(Z0, Z1, Z2, Z3, y0, y1, y2, y3) \
	ADD(Z0, Z1, Z2, Z3, b0, b1, b2, b3) \
	XORROR(16, d0, d1, d2, d3, Z0, Z1, Z2, Z3) \
	ADD(c0, c1, c2, c3, d0, d1, d2, d3) \
	XORROR(63, b0, b1, b2, b3, c0, c1, c2, c3)

#define COLUMNS(x0, y0, x1, y1, x2, y2, x3, y3) \
	MIX(Z4, Z5, Z6, Z7, Z8, Z9, Z10, Z11, Z12, Z13, Z14, Z15, x0, y0, x1, y1, x2, y2, x3, y3)

#define DIAGONALS(x0, y0, x1, y1, x2, y2, x3, y3) \
	MIX(Z5, Z6, Z7, Z4, Z10, Z11, Z8, Z9, Z15, Z12, Z13, Z14, x0, y0, x1, y1, x2, y2, x3, y3)

// LOAD reads 64 bytes at AX of each message, whose pointers are in R8 to R15.
#define LOAD \
	VMOVDQU64 (R8)(AX*1), Z0 \
	VMOVDQU64 (R9)(AX*1), Z1 \
	VMOVDQU64 (R10)(AX*1), Z2 \
	VMOVDQU64 (R11)(AX*1), Z3 \
	VMOVDQU64 (R12)(AX*1), Z4 \
	VMOVDQU64 (R13)(AX*1), Z5 \
	VMOVDQU64 (R14)(AX*1), Z6 \
	VMOVDQU64 (R15)(AX*1), Z7

// TRANSPOSE turns Z0 to Z7, eight words of one message each, into eight registers
// with one word of all messages each. It uses Z8 to Z15.
#define TRANSPOSE(w0, w1, w2, w3, w4, w5, w6, w7) \
	VPUNPCKLQDQ Z1, Z0, Z8 \
	VPUNPCKHQDQ Z1, Z0, Z9 \
	VPUNPCKLQDQ Z3, Z2, Z10 \
	VPUNPCKHQDQ Z3, Z2, Z11 \
	VPUNPCKLQDQ Z5, Z4, Z12 \
	VPUNPCKHQDQ Z5, Z4, Z13 \
	VPUNPCKLQDQ Z7, Z6, Z14 \
	VPUNPCKHQDQ Z7, Z6, Z15 \
	VSHUFI64X2 $0x88, Z10, Z8, Z0 \
	VSHUFI64X2 $0xdd, Z10, Z8, Z1 \
	VSHUFI64X2 $0x88, Z14, Z12, Z2 \
	VSHUFI64X2 $0xdd, Z14, Z12, Z3 \
	VSHUFI64X2 $0x88, Z11, Z9, Z4 \
	VSHUFI64X2 $0xdd, Z11, Z9, Z5 \
	VSHUFI64X2 $0x88, Z15, Z13, Z6 \
	VSHUFI64X2 $0xdd, Z15, Z13, Z7 \
	VSHUFI64X2 $0x88, Z2, Z0, w0 \
	VSHUFI64X2 $0xdd, Z2, Z0, w4 \
	VSHUFI64X2 $0x88, Z3, Z1, w2 \
	VSHUFI64X2 $0xdd, Z3, Z1, w6 \
	VSHUFI64X2 $0x88, Z6, Z4, w1 \
	VSHUFI64X2 $0xdd, Z6, Z4, w5 \
	VSHUFI64X2 $0x88, Z7, Z5, w3 \
	VSHUFI64X2 $0xdd, Z7, Z5, w7

// FOLD makes a word of the state of two words of v and its old value.
#define FOLD(offset, low, high) \
	VPXORQ high, low, low \
	VPXORQ offset(DI), low, low \
	VMOVDQU64 low, offset(DI)

// func compressAVX512(s *state, data *[8]*byte, blocks, counter, last uint64)
TEXT ·compressAVX512(SB), NOSPLIT, $0-40
	MOVQ s+0(FP), DI
	MOVQ data+8(FP), SI
	MOVQ blocks+16(FP), CX
	MOVQ counter+24(FP), BX
	MOVQ last+32(FP), DX

	MOVQ 0(SI), R8
	MOVQ 8(SI), R9
	MOVQ 16(SI), R10
	MOVQ 24(SI), R11
	MOVQ 32(SI), R12
	MOVQ 40(SI), R13
	MOVQ 48(SI), R14
	MOVQ 56(SI), R15
	LEAQ ·iv(SB), SI
	XORQ AX, AX

block:
	LOAD
	TRANSPOSE(M0, M1, M2, M3, M4, M5, M6, M7)
	ADDQ $64, AX
	LOAD
	TRANSPOSE(M8, M9, M10, M11, M12, M13, M14, M15)
	ADDQ $64, AX

	VPBROADCASTQ 0(SI), Z8
	VPBROADCASTQ 8(SI), Z9
	VPBROADCASTQ 16(SI), Z10
	VPBROADCASTQ 24(SI), Z11
	VPBROADCASTQ 32(SI), Z12
	VPBROADCASTQ 40(SI), Z13
	VPBROADCASTQ 48(SI), Z14
	VPBROADCASTQ 56(SI), Z15

	// v12 takes how many bytes end with this block, v14 whether it is the last one.
	ADDQ $128, BX
	VPBROADCASTQ BX, Z0
	VPXORQ Z0, Z12, Z12
	CMPQ CX, $1
	JNE middle
	VPBROADCASTQ DX, Z0
	VPXORQ Z0, Z14, Z14

middle:
	VMOVDQU64 0(DI), Z0
	VMOVDQU64 64(DI), Z1
	VMOVDQU64 128(DI), Z2
	VMOVDQU64 192(DI), Z3
	VMOVDQU64 256(DI), Z4
	VMOVDQU64 320(DI), Z5
	VMOVDQU64 384(DI), Z6
	VMOVDQU64 448(DI), Z7

	ROUNDS

	FOLD(0, Z0, Z8)
	FOLD(64, Z1, Z9)
	FOLD(128, Z2, Z10)
	FOLD(192, Z3, Z11)
	FOLD(256, Z4, Z12)
	FOLD(320, Z5, Z13)
	FOLD(384, Z6, Z14)
	FOLD(448, Z7, Z15)

	DECQ CX
	JNE block
	VZEROUPPER
	RET
