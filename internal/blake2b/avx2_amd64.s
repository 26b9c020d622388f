#include "textflag.h"
#include "rounds_amd64.h"

// One vector register holds the same word of four messages. Y0 to Y14 are the working
// vector v of RFC 7693, section 3.2, but for its last word, for which there is no
// register left beside Y15, which is needed to rotate. That word, and the words of
// the block, are on the stack.
#define M0 0(SP)
#define M1 32(SP)
#define M2 64(SP)
#define M3 96(SP)
#define M4 128(SP)
#define M5 160(SP)
#define M6 192(SP)
#define M7 224(SP)
#define M8 256(SP)
#define M9 288(SP)
#define M10 320(SP)
#define M11 352(SP)
#define M12 384(SP)
#define M13 416(SP)
#define M14 448(SP)
#define M15 480(SP)
#define V15 512(SP)

// Bytes of a word in the order of its rotation by 24 and by 16 bits.
DATA rotate24<>+0(SB)/8, $0x0201000706050403
DATA rotate24<>+8(SB)/8, $0x0a09080f0e0d0c0b
DATA rotate24<>+16(SB)/8, $0x0201000706050403
DATA rotate24<>+24(SB)/8, $0x0a09080f0e0d0c0b
GLOBL rotate24<>(SB), RODATA|NOPTR, $32

DATA rotate16<>+0(SB)/8, $0x0100070605040302
DATA rotate16<>+8(SB)/8, $0x09080f0e0d0c0b0a
DATA rotate16<>+16(SB)/8, $0x0100070605040302
DATA rotate16<>+24(SB)/8, $0x09080f0e0d0c0b0a
GLOBL rotate16<>(SB), RODATA|NOPTR, $32

#define XOR(d0, d1, d2, d3, s0, s1, s2, s3) \
	VPXOR s0, d0, d0 \
	VPXOR s1, d1, d1 \
	VPXOR s2, d2, d2 \
	VPXOR s3, d3, d3

#define ROTATE32(d0, d1, d2, d3) \
	VPSHUFD $0xb1, d0, d0 \
	VPSHUFD $0xb1, d1, d1 \
	VPSHUFD $0xb1, d2, d2 \
	VPSHUFD $0xb1, d3, d3

#define SHUFFLE(order, d0, d1, d2, d3) \
	VPSHUFB order<>(SB), d0, d0 \
	VPSHUFB order<>(SB), d1, d1 \
	VPSHUFB order<>(SB), d2, d2 \
	VPSHUFB order<>(SB), d3, d3

#define ROTATE63(d) \
	VPADDQ d, d, Y15 \
	VPSRLQ $63, d, d \
	VPXOR Y15, d, d

// MIX is the function G, four at a time: of the columns of v, or of its diagonals.
// One of d0 to d3 is Y15.
#define MIX(b0, b1, b2, b3, c0, c1, c2, c3, d0, d1, d2, d3, x0, y0, x1, y1, x2, y2, x3, y3) \
	ADD(Y0, Y1, Y2, Y3, x0, x1, x2, x3) \
	ADD(Y0, Y1, Y2, Y3, b0, b1, b2, b3) \
	VMOVDQU V15, Y15 \
	XOR(d0, d1, d2, d3, Y0, Y1, Y2, Y3) \
	ROTATE32(d0, d1, d2, d3) \
	ADD(c0, c1, c2, c3, d0, d1, d2, d3) \
	XOR(b0, b1, b2, b3, c0, c1, c2, c3) \
	SHUFFLE(rotate24, b0, b1, b2, b3) \
	ADD(Y0, Y1, Y2, Y3, y0, y1, y2, y3) \
	ADD(Y0, Y1, Y2, Y3, b0, b1, b2, b3) \
	XOR(d0, d1, d2, d3, Y0, Y1, Y2, Y3) \
	SHUFFLE(rotate16, d0, d1, d2, d3) \
	ADD(c0, c1, c2, c3, d0, d1, d2, d3) \
	VMOVDQU Y15, V15 \
	XOR(b0, b1, b2, b3, c0, c1, c2, c3) \
	ROTATE63(b0) \
	ROTATE63(b1) \
	ROTATE63(b2) \
	ROTATE63(b3)

#define COLUMNS(x0, y0, x1, y1, x2, y2, x3, y3) \
	MIX(Y4, Y5, Y6, Y7, Y8, Y9, Y10, Y11, Y12, Y13, Y14, Y15, x0, y0, x1, y1, x2, y2, x3, y3)

#define DIAGONALS(x0, y0, x1, y1, x2, y2, x3, y3) \
	MIX(Y5, Y6, Y7, Y4, Y10, Y11, Y8, Y9, Y15, Y12, Y13, Y14, x0, y0, x1, y1, x2, y2, x3, y3)

// WORDS reads 32 bytes at AX of each message, whose pointers are in R8 to R11, and
// writes four words of all messages each.
#define WORDS(w0, w1, w2, w3) \
	VMOVDQU (R8)(AX*1), Y0 \
	VMOVDQU (R9)(AX*1), Y1 \
	VMOVDQU (R10)(AX*1), Y2 \
	VMOVDQU (R11)(AX*1), Y3 \
	VPUNPCKLQDQ Y1, Y0, Y4 \
	VPUNPCKHQDQ Y1, Y0, Y5 \
	VPUNPCKLQDQ Y3, Y2, Y6 \
	VPUNPCKHQDQ Y3, Y2, Y7 \
	VPERM2I128 $0x20, Y6, Y4, Y0 \
	VPERM2I128 $0x20, Y7, Y5, Y1 \
	VPERM2I128 $0x31, Y6, Y4, Y2 \
	VPERM2I128 $0x31, Y7, Y5, Y3 \
	VMOVDQU Y0, w0 \
	VMOVDQU Y1, w1 \
	VMOVDQU Y2, w2 \
	VMOVDQU Y3, w3 \
	ADDQ $32, AX

// FOLD makes a word of the state of two words of v and its old value.
#define FOLD(offset, low, high) \
	VPXOR high, low, low \
	VPXOR offset(DI), low, low \
	VMOVDQU low, offset(DI)

// func compressAVX2(s *uint64, data **byte, blocks, counter, last uint64)
TEXT ·compressAVX2(SB), NOSPLIT, $544-40
	MOVQ s+0(FP), DI
	MOVQ data+8(FP), SI
	MOVQ blocks+16(FP), CX
	MOVQ counter+24(FP), BX
	MOVQ last+32(FP), DX
	MOVQ 0(SI), R8
	MOVQ 8(SI), R9
	MOVQ 16(SI), R10
	MOVQ 24(SI), R11
	LEAQ ·iv(SB), SI
	XORQ AX, AX

block:
	WORDS(M0, M1, M2, M3)
	WORDS(M4, M5, M6, M7)
	WORDS(M8, M9, M10, M11)
	WORDS(M12, M13, M14, M15)

	VPBROADCASTQ 56(SI), Y15
	VMOVDQU Y15, V15
	VPBROADCASTQ 0(SI), Y8
	VPBROADCASTQ 8(SI), Y9
	VPBROADCASTQ 16(SI), Y10
	VPBROADCASTQ 24(SI), Y11
	VPBROADCASTQ 32(SI), Y12
	VPBROADCASTQ 40(SI), Y13
	VPBROADCASTQ 48(SI), Y14

	// v12 takes how many bytes end with this block, v14 whether it is the last one.
	ADDQ $128, BX
	MOVQ BX, X0
	VPBROADCASTQ X0, Y0
	VPXOR Y0, Y12, Y12
	CMPQ CX, $1
	JNE middle
	MOVQ DX, X0
	VPBROADCASTQ X0, Y0
	VPXOR Y0, Y14, Y14

middle:
	VMOVDQU 0(DI), Y0
	VMOVDQU 64(DI), Y1
	VMOVDQU 128(DI), Y2
	VMOVDQU 192(DI), Y3
	VMOVDQU 256(DI), Y4
	VMOVDQU 320(DI), Y5
	VMOVDQU 384(DI), Y6
	VMOVDQU 448(DI), Y7

	ROUNDS

	FOLD(0, Y0, Y8)
	FOLD(64, Y1, Y9)
	FOLD(128, Y2, Y10)
	FOLD(192, Y3, Y11)
	FOLD(256, Y4, Y12)
	FOLD(320, Y5, Y13)
	FOLD(384, Y6, Y14)
	VMOVDQU V15, Y15
	FOLD(448, Y7, Y15)

	DECQ CX
	JNE block
	VZEROUPPER
	RET
