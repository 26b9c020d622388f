package ext

import (
	"errors"
	"fmt"

	"github.com/blockmover/blockmover/internal/filesystem"
)

// recover replays the journal if it has changes that are not in their places.
//
// A damaged journal is no error: the changes before the damage are shown, and a note says so.
func (f *FileSystem) recover() error {
	if f.super.compat&compatHasJournal == 0 || f.super.incompat&incompatRecover == 0 {
		return nil
	}
	l, err := f.openLog()
	if errors.Is(err, filesystem.ErrDamaged) {
		f.note("The journal is damaged: %v. Changes that it had are not shown.", err)
		return nil
	}
	if err != nil || l.start == 0 {
		return err
	}
	r := &recovery{log: l, revokes: map[uint64]uint32{}, next: l.sequence, position: l.start}
	err = r.scan()
	if err != nil && !errors.Is(err, filesystem.ErrDamaged) {
		return err
	}
	r.applyRevokes()
	f.note("The journal was replayed: %d transactions, which change %d blocks.", r.transactions, len(l.blocks))
	if err != nil {
		f.note("The journal is damaged: %v. Changes after transaction %d are not shown.", err, r.next-1)
	}
	f.dev = f.dev.withLog(l)
	if f.super, err = readSuperblock(f.dev.size, f.dev.readData); err != nil {
		return err
	}
	if f.super.blockSize != f.dev.blockSize {
		return damaged("the journal has a superblock with another block size")
	}
	f.dev.blocks = f.super.blocks
	if !l.has(journalFastCommit) {
		return nil
	}
	return f.replayFast(l, r.next)
}

// recovery is a scan of the log, transaction by transaction.
type recovery struct {
	log      *log
	revokes  map[uint64]uint32 // sequence numbers
	next     uint32            // the sequence number of the transaction that is read
	position uint32
	read     uint32 // blocks

	transactions int
	lastCommit   uint64 // seconds

	// Of the transaction that is read:
	blocks  []pendingBlock
	revoked []uint64
	stale   error  // a block that fails its checksum
	crc     uint32 // of all blocks, with journalCompatChecksum
}

type pendingBlock struct {
	number uint64
	logged
}

// scan reads transactions up to the first one that is not complete. Its commit block, the last of a transaction, is
// missing or belongs to an earlier lap of the ring.
func (r *recovery) scan() error {
	for {
		r.blocks, r.revoked, r.stale, r.crc = r.blocks[:0], r.revoked[:0], nil, ^uint32(0)
		complete, err := r.transaction()
		if err != nil {
			return fmt.Errorf("transaction %d: %w", r.next, err)
		}
		if !complete {
			return nil
		}
		for _, b := range r.blocks {
			r.log.blocks[b.number] = b.logged
		}
		for _, number := range r.revoked {
			r.revokes[number] = r.next
		}
		if len(r.log.blocks)+len(r.revokes) > maxLogged {
			return unsupported("a journal that changes more than %d blocks", maxLogged)
		}
		r.transactions++
		r.next++
	}
}

// take returns the next block of the ring. After one lap there is none.
func (r *recovery) take() ([]byte, error) {
	if r.read >= r.log.last-r.log.first {
		return nil, nil
	}
	block, err := r.log.block(r.position)
	r.skip()
	return block, err
}

func (r *recovery) skip() {
	r.read++
	if r.position++; r.position == r.log.last {
		r.position = r.log.first
	}
}

// transaction reads one transaction, and reports whether it is complete.
func (r *recovery) transaction() (bool, error) {
	for {
		block, err := r.take()
		if err != nil || block == nil {
			return false, err
		}
		if be.Uint32(block) != journalMagic || be.Uint32(block[8:]) != r.next {
			return false, nil
		}
		switch be.Uint32(block[4:]) {
		case journalDescriptor:
			if !r.log.tailChecksum(block) {
				r.stale = damaged("a descriptor block fails its checksum")
			}
			if err := r.descriptor(block); err != nil {
				return false, err
			}
		case journalRevoke:
			if !r.log.tailChecksum(block) {
				r.stale = damaged("a revoke block fails its checksum")
				continue
			}
			numbers, err := r.log.revoked(block)
			if err != nil {
				return false, err
			}
			r.revoked = append(r.revoked, numbers...)
		case journalCommit:
			return r.commit(block)
		default:
			return false, nil
		}
		if len(r.blocks)+len(r.revoked) > maxLogged {
			return false, unsupported("a transaction of more than %d blocks", maxLogged)
		}
	}
}

func (r *recovery) descriptor(block []byte) error {
	tags := r.log.tags(block)
	whole := r.log.compat&journalCompatChecksum != 0
	if whole {
		r.crc = crc32be(r.crc, block)
	}
	for _, t := range tags {
		if r.stale == nil {
			r.blocks = append(r.blocks, pendingBlock{t.number, logged{
				position: r.position, sequence: r.next, checksum: t.checksum, escaped: t.flags&tagEscaped != 0,
			}})
		}
		if !whole {
			r.skip()
			continue
		}
		data, err := r.take()
		if err != nil {
			return err
		}
		r.crc = crc32be(r.crc, data)
	}
	return nil
}

// commit checks a commit block. A transaction that fails its checksum, but is older than the one before, is of an earlier
// lap of the ring.
func (r *recovery) commit(block []byte) (bool, error) {
	at := be.Uint64(block[0x30:])
	err := r.stale
	if err == nil && !r.commitChecksum(block) {
		err = damaged("the commit block fails its checksum")
		if r.log.has(journalAsyncCommit) {
			return false, nil // the commit block may be written before the others
		}
	}
	if err != nil {
		if at < r.lastCommit {
			err = nil
		}
		return false, err
	}
	r.lastCommit = at
	return true, nil
}

func (r *recovery) commitChecksum(block []byte) bool {
	kind, size, sum := block[12], block[13], be.Uint32(block[16:])
	switch {
	case r.log.checksums():
		return crc32cWithout(r.log.seed, block, 16, 4) == sum
	case r.log.compat&journalCompatChecksum != 0:
		return kind == 0 && size == 0 && sum == 0 || kind == 1 && size == 4 && sum == r.crc
	}
	return true
}

// applyRevokes forgets blocks that were freed in the same or in a later transaction: they have other content now.
func (r *recovery) applyRevokes() {
	for number, sequence := range r.revokes {
		if entry, found := r.log.blocks[number]; found && int32(entry.sequence-sequence) <= 0 {
			delete(r.log.blocks, number)
		}
	}
}
