package ext

import (
	"encoding/binary"
	"hash/crc32"
)

var (
	le = binary.LittleEndian
	be = binary.BigEndian

	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

// crc32c continues a checksum without the inversions of hash/crc32, as the kernel does.
func crc32c(seed uint32, data []byte) uint32 {
	return ^crc32.Update(^seed, castagnoli, data)
}

// crc32cLE32 continues a checksum with a number as it would be on the device.
func crc32cLE32(seed, n uint32) uint32 {
	var b [4]byte
	le.PutUint32(b[:], n)
	return crc32c(seed, b[:])
}

// crc32cWithout continues a checksum with data in which a field of n bytes counts as zeros.
func crc32cWithout(seed uint32, data []byte, field, n int) uint32 {
	var zeros [4]byte
	seed = crc32c(seed, data[:field])
	seed = crc32c(seed, zeros[:n])
	return crc32c(seed, data[field+n:])
}

// crc16 continues the checksum of group descriptors without metadata_csum: polynomial 0x8005, reflected.
func crc16(crc uint16, data []byte) uint16 {
	for _, b := range data {
		crc ^= uint16(b)
		for range 8 {
			if crc&1 != 0 {
				crc = crc>>1 ^ 0xa001
			} else {
				crc >>= 1
			}
		}
	}
	return crc
}

var crc32BETable = func() (table [256]uint32) {
	for i := range table {
		crc := uint32(i) << 24
		for range 8 {
			if crc&(1<<31) != 0 {
				crc = crc<<1 ^ 0x04c11db7
			} else {
				crc <<= 1
			}
		}
		table[i] = crc
	}
	return table
}()

// crc32be continues the checksum of whole transactions (journal_checksum without metadata_csum): the polynomial of
// IEEE 802.3, not reflected.
func crc32be(crc uint32, data []byte) uint32 {
	for _, b := range data {
		crc = crc<<8 ^ crc32BETable[byte(crc>>24)^b]
	}
	return crc
}
