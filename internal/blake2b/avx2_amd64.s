#include "textflag.h"

// One vector register holds the same word of four messages. Y0 to Y14 are the working
// vector v of RFC 7693, section 3.2, but for its last word, for which there is no
// register left beside Y15, which is needed to rotate. That word, and the words of
// the block, are on the stack.
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

// The mixing function G, four at a time: first the columns of v, then its diagonals.
#define ADD(d0, d1, d2, d3, s0, s1, s2, s3) \
	VPADDQ s0, d0, d0 \
	VPADDQ s1, d1, d1 \
	VPADDQ s2, d2, d2 \
	VPADDQ s3, d3, d3

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

#define COLUMNS(x0, y0, x1, y1, x2, y2, x3, y3) \
	ADD(Y0, Y1, Y2, Y3, x0(SP), x1(SP), x2(SP), x3(SP)) \
	ADD(Y0, Y1, Y2, Y3, Y4, Y5, Y6, Y7) \
	VMOVDQU V15, Y15 \
	XOR(Y12, Y13, Y14, Y15, Y0, Y1, Y2, Y3) \
	ROTATE32(Y12, Y13, Y14, Y15) \
	ADD(Y8, Y9, Y10, Y11, Y12, Y13, Y14, Y15) \
	XOR(Y4, Y5, Y6, Y7, Y8, Y9, Y10, Y11) \
	SHUFFLE(rotate24, Y4, Y5, Y6, Y7) \
	ADD(Y0, Y1, Y2, Y3, y0(SP), y1(SP), y2(SP), y3(SP)) \
	ADD(Y0, Y1, Y2, Y3, Y4, Y5, Y6, Y7) \
	XOR(Y12, Y13, Y14, Y15, Y0, Y1, Y2, Y3) \
	SHUFFLE(rotate16, Y12, Y13, Y14, Y15) \
	ADD(Y8, Y9, Y10, Y11, Y12, Y13, Y14, Y15) \
	VMOVDQU Y15, V15 \
	XOR(Y4, Y5, Y6, Y7, Y8, Y9, Y10, Y11) \
	ROTATE63(Y4) \
	ROTATE63(Y5) \
	ROTATE63(Y6) \
	ROTATE63(Y7)

#define DIAGONALS(x0, y0, x1, y1, x2, y2, x3, y3) \
	ADD(Y0, Y1, Y2, Y3, x0(SP), x1(SP), x2(SP), x3(SP)) \
	ADD(Y0, Y1, Y2, Y3, Y5, Y6, Y7, Y4) \
	VMOVDQU V15, Y15 \
	XOR(Y15, Y12, Y13, Y14, Y0, Y1, Y2, Y3) \
	ROTATE32(Y15, Y12, Y13, Y14) \
	ADD(Y10, Y11, Y8, Y9, Y15, Y12, Y13, Y14) \
	XOR(Y5, Y6, Y7, Y4, Y10, Y11, Y8, Y9) \
	SHUFFLE(rotate24, Y5, Y6, Y7, Y4) \
	ADD(Y0, Y1, Y2, Y3, y0(SP), y1(SP), y2(SP), y3(SP)) \
	ADD(Y0, Y1, Y2, Y3, Y5, Y6, Y7, Y4) \
	XOR(Y15, Y12, Y13, Y14, Y0, Y1, Y2, Y3) \
	SHUFFLE(rotate16, Y15, Y12, Y13, Y14) \
	ADD(Y10, Y11, Y8, Y9, Y15, Y12, Y13, Y14) \
	VMOVDQU Y15, V15 \
	XOR(Y5, Y6, Y7, Y4, Y10, Y11, Y8, Y9) \
	ROTATE63(Y5) \
	ROTATE63(Y6) \
	ROTATE63(Y7) \
	ROTATE63(Y4)

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
	VMOVDQU Y0, w0(SP) \
	VMOVDQU Y1, w1(SP) \
	VMOVDQU Y2, w2(SP) \
	VMOVDQU Y3, w3(SP) \
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
	WORDS(0, 32, 64, 96)
	WORDS(128, 160, 192, 224)
	WORDS(256, 288, 320, 352)
	WORDS(384, 416, 448, 480)

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

	COLUMNS(0, 32, 64, 96, 128, 160, 192, 224)
	DIAGONALS(256, 288, 320, 352, 384, 416, 448, 480)
	COLUMNS(448, 320, 128, 256, 288, 480, 416, 192)
	DIAGONALS(32, 384, 0, 64, 352, 224, 160, 96)
	COLUMNS(352, 256, 384, 0, 160, 64, 480, 416)
	DIAGONALS(320, 448, 96, 192, 224, 32, 288, 128)
	COLUMNS(224, 288, 96, 32, 416, 384, 352, 448)
	DIAGONALS(64, 192, 160, 320, 128, 0, 480, 256)
	COLUMNS(288, 0, 160, 224, 64, 128, 320, 480)
	DIAGONALS(448, 32, 352, 384, 192, 256, 96, 416)
	COLUMNS(64, 384, 192, 320, 0, 352, 256, 96)
	DIAGONALS(128, 416, 224, 160, 480, 448, 32, 288)
	COLUMNS(384, 160, 32, 480, 448, 416, 128, 320)
	DIAGONALS(0, 224, 192, 96, 288, 64, 256, 352)
	COLUMNS(416, 352, 224, 448, 384, 32, 96, 288)
	DIAGONALS(160, 0, 480, 128, 256, 192, 64, 320)
	COLUMNS(192, 480, 448, 288, 352, 96, 0, 256)
	DIAGONALS(384, 64, 416, 224, 32, 128, 320, 160)
	COLUMNS(320, 64, 256, 128, 224, 192, 32, 160)
	DIAGONALS(480, 352, 288, 448, 96, 384, 416, 0)
	COLUMNS(0, 32, 64, 96, 128, 160, 192, 224)
	DIAGONALS(256, 288, 320, 352, 384, 416, 448, 480)
	COLUMNS(448, 320, 128, 256, 288, 480, 416, 192)
	DIAGONALS(32, 384, 0, 64, 352, 224, 160, 96)

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
