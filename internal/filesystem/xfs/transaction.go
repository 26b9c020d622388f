package xfs

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/blockmover/blockmover/internal/filesystem"
)

// Flags of an operation in the log.
const (
	operationStart     = 0x01
	operationCommit    = 0x02
	operationContinue  = 0x04
	operationContinued = 0x08
	operationEnd       = 0x10
	operationUnmount   = 0x20

	operationHeader   = 12
	transactionHeader = 16
	transactionMagic  = 0x5452414e // "TRAN"

	// maxRegions bounds the regions of an item (XLOG_MAX_REGIONS_IN_ITEM).
	maxRegions = 64<<10/chunkSize/2 + 1
	// regionCost is what a region takes beside its bytes.
	regionCost = 64
)

// transaction is what the log has of a transaction that is not committed yet.
type transaction struct {
	lsn    uint64
	header []byte
	items  []*item
	bytes  int64
}

// item is a changed object: the first region says what it is, the others are its parts.
type item struct {
	regions [][]byte
	total   int
}

// replayer reads transactions into an overlay.
type replayer struct {
	super   *superblock
	log     *logReader
	overlay *overlay
	open    map[uint32]*transaction
	pending int64 // bytes of the open transactions
	intents map[intentKey]intent
	order   int
	commits int
}

// replay reads the log. Without changes in the log the overlay is empty. It returns how many transactions were replayed.
func replay(d *device, s *superblock) (*overlay, int, error) {
	l := &logReader{device: d, super: s}
	ends, err := l.ends()
	if err != nil || ends.clean {
		return newOverlay(), 0, err
	}
	if unknown := s.logIncompat &^ logIncompatAttributes; unknown != 0 {
		return nil, 0, unsupported("features %#x in a log that has to be replayed, which are newer than this reader", unknown)
	}
	if ends.tail, err = l.seek(ends.tail, ends.head, 1); err != nil {
		return nil, 0, err
	}
	for {
		r := &replayer{super: s, log: l, overlay: newOverlay(), open: map[uint32]*transaction{}, intents: map[intentKey]intent{}}
		err := l.records(ends.tail, ends.head, r.record)
		var bad *recordError
		switch {
		case err == nil:
			r.noteUnfinished()
			return r.overlay, r.commits, nil
		case !errors.As(err, &bad) || !errors.Is(err, filesystem.ErrDamaged):
			return nil, 0, err
		}
		if ends.tail, err = l.nextTail(ends, bad.at); err != nil {
			return nil, 0, err
		}
	}
}

// record takes the operations of a record.
func (r *replayer) record(h recordHeader, data []byte) error {
	if err := r.log.checkMount(&h); err != nil {
		return err
	}
	for range h.operations {
		if len(data) < operationHeader {
			return damaged("log record at sector %d has fewer operations than it says", h.at)
		}
		id, length, flags := binary.BigEndian.Uint32(data), binary.BigEndian.Uint32(data[4:]), data[9]
		data = data[operationHeader:]
		if int64(length) > int64(len(data)) {
			return damaged("an operation of the log record at sector %d has %d bytes", h.at, length)
		}
		if err := r.operation(h.lsn, id, flags, data[:length]); err != nil {
			return fmt.Errorf("log record at sector %d: %w", h.at, err)
		}
		data = data[length:]
	}
	return nil
}

func (r *replayer) operation(lsn uint64, id uint32, flags byte, data []byte) error {
	t := r.open[id]
	if t == nil {
		// What belongs to a transaction that began before the tail is on the device.
		if flags&operationStart != 0 {
			r.open[id] = &transaction{lsn: lsn}
			return r.grow(r.open[id], regionCost)
		}
		return nil
	}
	flags &^= operationEnd
	if flags&operationContinued != 0 {
		flags &^= operationContinue
	}
	switch flags {
	case 0, operationContinue:
		return r.add(t, data)
	case operationContinued:
		return r.extend(t, data)
	case operationCommit:
		delete(r.open, id)
		r.pending -= t.bytes
		r.commits++
		return r.commit(t)
	case operationUnmount:
		delete(r.open, id)
		r.pending -= t.bytes
		return nil
	}
	return damaged("an operation of a transaction has flags %#x", flags)
}

// grow counts bytes that a transaction keeps.
func (r *replayer) grow(t *transaction, n int) error {
	t.bytes += int64(n)
	r.pending += int64(n)
	return r.checkMemory()
}

// checkMemory bounds what is kept of the log.
func (r *replayer) checkMemory() error {
	if r.pending+r.overlay.bytes > maxOverlay {
		return unsupported("a log with more than %d MiB of changes; restore the volume and mount it", maxOverlay>>20)
	}
	return nil
}

// add takes a region, or its beginning.
func (r *replayer) add(t *transaction, data []byte) error {
	if len(data) == 0 {
		return nil
	}
	if len(t.header) < transactionHeader {
		if len(data) > transactionHeader || len(t.header) > 0 || len(data) < 4 || binary.LittleEndian.Uint32(data) != transactionMagic {
			return damaged("a transaction begins with %d bytes that are no header", len(data))
		}
		t.header = append(t.header, data...)
		return nil
	}
	if err := r.grow(t, len(data)+regionCost); err != nil {
		return err
	}
	var last *item
	if len(t.items) > 0 {
		last = t.items[len(t.items)-1]
	}
	if last == nil || len(last.regions) == last.total {
		if len(data) < 4 {
			return damaged("an item of a transaction begins with %d bytes", len(data))
		}
		last = &item{total: int(binary.LittleEndian.Uint16(data[2:]))}
		if last.total == 0 || last.total > maxRegions {
			return damaged("an item of a transaction has %d regions", last.total)
		}
		t.items = append(t.items, last)
	}
	last.regions = append(last.regions, append([]byte(nil), data...))
	return nil
}

// extend takes the rest of a region that began in an earlier record.
func (r *replayer) extend(t *transaction, data []byte) error {
	if len(t.header) < transactionHeader {
		if len(data) > transactionHeader-len(t.header) {
			return damaged("the header of a transaction is too long")
		}
		t.header = append(t.header, data...)
		return nil
	}
	if len(t.items) == 0 {
		return damaged("a transaction goes on with a region that did not begin")
	}
	if err := r.grow(t, len(data)); err != nil {
		return err
	}
	regions := t.items[len(t.items)-1].regions
	regions[len(regions)-1] = append(regions[len(regions)-1], data...)
	return nil
}

// Types of items.
const (
	itemExtentFree       = 0x1236
	itemExtentFreeDone   = 0x1237
	itemInode            = 0x123b
	itemBuffer           = 0x123c
	itemDquot            = 0x123d
	itemQuotaOff         = 0x123e
	itemCreate           = 0x123f
	itemReverseMap       = 0x1240
	itemReverseMapDone   = 0x1241
	itemCount            = 0x1242
	itemCountDone        = 0x1243
	itemMap              = 0x1244
	itemMapDone          = 0x1245
	itemAttribute        = 0x1246
	itemAttributeDone    = 0x1247
	itemExchange         = 0x1248
	itemExchangeDone     = 0x1249
	itemRealtimeFirst    = 0x124a // intents of the realtime device, which free space or count who uses it
	itemRealtimeLast     = 0x124f
	bufferInodes         = 1 << 0 // flags of a buffer
	bufferCancel         = 1 << 1
	bufferDquots         = 1<<2 | 1<<3 | 1<<4
	maxBuffer            = 64 << 10
	maxInodesCreatedSize = 128 << 10 // 64 inodes of 2 KiB
	createdCost          = 32        // what a block of new inodes takes in the overlay
)

// commit takes the items of a transaction in the order in which the kernel replays them: buffers, other items, and the
// cancels of buffers at the end.
func (r *replayer) commit(t *transaction) error {
	rank := func(i *item) int {
		switch {
		case i.kind() != itemBuffer:
			return 1
		case len(i.regions[0]) >= 6 && binary.LittleEndian.Uint16(i.regions[0][4:])&bufferCancel != 0:
			return 2
		}
		return 0
	}
	for pass := range 3 {
		for _, i := range t.items {
			if len(i.regions) != i.total {
				return damaged("an item of a transaction has %d of %d regions", len(i.regions), i.total)
			}
			if rank(i) != pass {
				continue
			}
			r.order++
			if err := r.item(t.lsn, i); err != nil {
				return err
			}
		}
	}
	return nil
}

func (i *item) kind() int { return int(binary.LittleEndian.Uint16(i.regions[0])) }

func (r *replayer) item(lsn uint64, i *item) error {
	kind := i.kind()
	switch kind {
	case itemBuffer:
		return r.buffer(lsn, i)
	case itemInode:
		return r.inode(lsn, i)
	case itemCreate:
		return r.create(i)
	case itemMap, itemAttribute, itemExchange:
		return r.intent(i)
	case itemMapDone, itemAttributeDone, itemExchangeDone:
		return r.done(i)
	case itemExtentFree, itemExtentFreeDone, itemReverseMap, itemReverseMapDone, itemCount, itemCountDone, itemDquot, itemQuotaOff:
		return nil // nothing that a reader sees
	}
	if kind >= itemRealtimeFirst && kind <= itemRealtimeLast {
		return nil
	}
	return unsupported("the log has a change of type %#x, which is newer than this reader", kind)
}
