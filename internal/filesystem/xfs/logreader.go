package xfs

import (
	"encoding/binary"
	"hash/crc32"
)

const (
	sector = 512

	recordMagic = 0xfeedbabe // XLOG_HEADER_MAGIC_NUM
	maxRecord   = 256 << 10  // XLOG_MAX_RECORD_BSIZE
	maxRecords  = 8          // XLOG_MAX_ICLOGS: how many records may be on their way to the device at once

	// A record header has the cycle numbers of 32 KiB of data. Longer records have more headers.
	cycleBytes   = 32 << 10
	cycleSectors = cycleBytes / sector

	formatLittleEndian = 1 // XLOG_FMT_LINUX_LE
)

// logReader reads the log: a ring of sectors. Positions are numbers of sectors.
type logReader struct {
	device *device
	super  *superblock
}

// sectors returns n sectors from position at on, past the end of the ring, too. n is at most the size of the log.
func (l *logReader) sectors(at, n int64) ([]byte, error) {
	at %= l.super.logSectors
	first := min(n, l.super.logSectors-at)
	b := make([]byte, n*sector)
	if err := l.device.readInto(b[:first*sector], l.super.logOffset+at*sector); err != nil {
		return nil, err
	}
	return b, l.device.readInto(b[first*sector:], l.super.logOffset)
}

// cycle returns how often the log was written around when this sector was written.
func cycleOf(b []byte) uint32 {
	if c := binary.BigEndian.Uint32(b); c != recordMagic {
		return c
	}
	return binary.BigEndian.Uint32(b[4:])
}

func (l *logReader) cycle(at int64) (uint32, error) {
	b, err := l.sectors(at, 1)
	if err != nil {
		return 0, err
	}
	return cycleOf(b), nil
}

// recordHeader is the header of a log record.
type recordHeader struct {
	at                     int64 // its position
	version                uint32
	length                 int64 // of the data, in bytes
	lsn, tail              uint64
	sum                    uint32
	operations             uint32
	format                 uint32
	uuid                   [16]byte
	iclogSize, headSectors int64
}

// lsnBlock is the position of an LSN.
func lsnBlock(lsn uint64) int64 { return int64(lsn & (1<<32 - 1)) }

// parseHeader reads the first sector of a record; it reports whether it is one.
func (l *logReader) parseHeader(at int64, b []byte) (recordHeader, bool) {
	be := binary.BigEndian
	if be.Uint32(b) != recordMagic {
		return recordHeader{}, false
	}
	h := recordHeader{
		at: at, version: be.Uint32(b[8:]), length: int64(be.Uint32(b[12:])),
		lsn: be.Uint64(b[16:]), tail: be.Uint64(b[24:]), sum: binary.LittleEndian.Uint32(b[32:]),
		operations: be.Uint32(b[40:]), format: be.Uint32(b[300:]), iclogSize: int64(be.Uint32(b[320:])), headSectors: 1,
	}
	copy(h.uuid[:], b[304:])
	if l.super.logV2 && h.version&2 != 0 && h.iclogSize > cycleBytes {
		h.headSectors = (h.iclogSize + cycleBytes - 1) / cycleBytes
	}
	return h, true
}

// dataSectors is how many sectors the data takes.
func (h *recordHeader) dataSectors() int64 { return (h.length + sector - 1) / sector }

// check reports whether the header can be one of a record of this log.
func (l *logReader) check(h *recordHeader) error {
	switch {
	case h.version == 0 || h.version&^3 != 0:
		return damaged("log record at sector %d has version %d", h.at, h.version)
	case h.length == 0 || h.length > maxRecord || h.iclogSize > maxRecord ||
		h.headSectors+h.dataSectors() > l.super.logSectors:
		return damaged("log record at sector %d has %d bytes", h.at, h.length)
	}
	return nil
}

// record reads the record at a position: its header, and its data as it was before the cycle numbers were put in.
// A wrong checksum is an error that wraps filesystem.ErrDamaged.
func (l *logReader) record(at int64) (recordHeader, []byte, error) {
	head, err := l.sectors(at, 1)
	if err != nil {
		return recordHeader{}, nil, err
	}
	h, found := l.parseHeader(at, head)
	if !found {
		return h, nil, damaged("there is no log record at sector %d", at)
	}
	if err := l.check(&h); err != nil {
		return h, nil, err
	}
	b, err := l.sectors(at, h.headSectors+h.dataSectors())
	if err != nil {
		return h, nil, err
	}
	heads, data := b[:h.headSectors*sector], b[h.headSectors*sector:]
	if h.sum != 0 && !recordSum(h.sum, heads, data[:h.length]) && l.super.v5 {
		return h, nil, damaged("the checksum of the log record at sector %d is wrong", at)
	}
	if h.sum == 0 && l.super.v5 {
		return h, nil, damaged("the log record at sector %d has no checksum", at)
	}
	for i := range h.dataSectors() {
		from := heads[44+4*(i%cycleSectors):]
		if i >= cycleSectors {
			if i/cycleSectors >= h.headSectors && h.operations == 1 {
				break // mkfs.xfs writes such a record, which only says that the log is empty
			}
			if i/cycleSectors >= h.headSectors {
				return h, nil, damaged("log record at sector %d has %d bytes and %d headers", at, h.length, h.headSectors)
			}
			from = heads[i/cycleSectors*sector+4+i%cycleSectors*4:]
		}
		copy(data[i*sector:i*sector+4], from[:4])
	}
	return h, data[:h.length], nil
}

// recordSum reports whether a checksum fits. It covers the structures, not the whole sectors. Systems of 32 bits have a shorter one.
func recordSum(want uint32, heads, data []byte) bool {
	for _, size := range []int{328, 324} {
		sum := crc32.Update(0, castagnoli, heads[:32])
		sum = crc32.Update(sum, castagnoli, []byte{0, 0, 0, 0})
		sum = crc32.Update(sum, castagnoli, heads[36:size])
		for at := sector; at < len(heads); at += sector {
			sum = crc32.Update(sum, castagnoli, heads[at:at+4+4*cycleSectors])
		}
		if crc32.Update(sum, castagnoli, data) == want {
			return true
		}
	}
	return false
}
