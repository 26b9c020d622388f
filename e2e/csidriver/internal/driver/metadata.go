package driver

import (
	"context"
	"errors"
	"hash/fnv"
	"iter"
	"math"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/blockmover/blockmover/e2e/csidriver/internal/extent"
	"github.com/blockmover/blockmover/e2e/csidriver/internal/options"
	"github.com/blockmover/blockmover/e2e/csidriver/internal/volume"
)

// defaultResults is the number of blocks in a message if the caller does not say.
const defaultResults = 256

type metadataServer struct {
	csi.UnimplementedSnapshotMetadataServer
	config Config
	store  *volume.Store
}

func (s *metadataServer) GetMetadataAllocated(request *csi.GetMetadataAllocatedRequest, stream csi.SnapshotMetadata_GetMetadataAllocatedServer) error {
	if err := require("snapshot_id", request.GetSnapshotId()); err != nil {
		return err
	}
	loaded, err := s.config.options()
	if err != nil {
		return err
	}
	if loaded.RefuseAllocated {
		return status.Error(codes.FailedPrecondition, "allocated blocks are refused by the driver's options")
	}
	target, err := s.target(request.GetSnapshotId(), request.GetStartingOffset())
	if err != nil {
		return err
	}
	file, err := extent.Open(s.store.SnapshotPath(target.ID))
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()

	blocks := extent.Allocated(file, request.GetStartingOffset(), loaded.BlockSize)
	sender := newSender(loaded, target.Size, request.GetMaxResults(), func(m message) error {
		return stream.Send(&csi.GetMetadataAllocatedResponse{
			BlockMetadataType: m.blockType, VolumeCapacityBytes: m.capacity, BlockMetadata: m.blocks,
		})
	})
	err = sender.sendAll(stream.Context(), blocks)
	s.config.Log.Info("allocated blocks", "snapshot", target.ID, "offset", request.GetStartingOffset(), "messages", sender.sent)
	return err
}

func (s *metadataServer) GetMetadataDelta(request *csi.GetMetadataDeltaRequest, stream csi.SnapshotMetadata_GetMetadataDeltaServer) error {
	if err := require("base_snapshot_id", request.GetBaseSnapshotId(), "target_snapshot_id", request.GetTargetSnapshotId()); err != nil {
		return err
	}
	loaded, err := s.config.options()
	if err != nil {
		return err
	}
	if loaded.RefuseDelta {
		return status.Error(codes.FailedPrecondition, "changed block tracking is refused by the driver's options")
	}
	base, err := s.base(request.GetBaseSnapshotId(), loaded.RequireBaseSnapshotForDelta)
	if err != nil {
		return err
	}
	target, err := s.target(request.GetTargetSnapshotId(), request.GetStartingOffset())
	if err != nil {
		return err
	}
	if base.VolumeID != target.VolumeID {
		return status.Errorf(codes.InvalidArgument, "snapshot %s is of volume %s, snapshot %s is of volume %s", base.ID, base.VolumeID, target.ID, target.VolumeID)
	}
	if base.Sequence > target.Sequence {
		return status.Errorf(codes.InvalidArgument, "base snapshot %s is newer than target snapshot %s", base.ID, target.ID)
	}
	return s.sendDelta(base, target, request, loaded, stream)
}

// sendDelta streams what changed between base and target.
func (s *metadataServer) sendDelta(base, target volume.Snapshot, request *csi.GetMetadataDeltaRequest, loaded options.Options, stream csi.SnapshotMetadata_GetMetadataDeltaServer) (err error) {
	baseFile, err := extent.Open(s.store.SnapshotPath(base.ID))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, baseFile.Close()) }()
	targetFile, err := extent.Open(s.store.SnapshotPath(target.ID))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, targetFile.Close()) }()

	blocks := omit(loaded.OmitChangedBlocks, request.GetStartingOffset(), func(from int64) iter.Seq2[extent.Range, error] {
		return extent.Changed(baseFile, targetFile, from, loaded.BlockSize)
	})
	sender := newSender(loaded, target.Size, request.GetMaxResults(), func(m message) error {
		return stream.Send(&csi.GetMetadataDeltaResponse{
			BlockMetadataType: m.blockType, VolumeCapacityBytes: m.capacity, BlockMetadata: m.blocks,
		})
	})
	err = sender.sendAll(stream.Context(), blocks)
	s.config.Log.Info("changed blocks", "base", base.ID, "snapshot", target.ID, "offset", request.GetStartingOffset(), "messages", sender.sent)
	return err
}

// target returns a snapshot whose blocks can be asked for from an offset on.
func (s *metadataServer) target(id string, offset int64) (volume.Snapshot, error) {
	target, err := s.store.Snapshot(id)
	if err != nil {
		return volume.Snapshot{}, err
	}
	if !target.Ready() {
		return volume.Snapshot{}, status.Errorf(codes.Unavailable, "snapshot %s is not ready to use", id)
	}
	if offset < 0 || offset > target.Size {
		return volume.Snapshot{}, status.Errorf(codes.OutOfRange, "starting_offset %d is not in the %d bytes of snapshot %s", offset, target.Size, id)
	}
	return target, nil
}

// base returns the base snapshot of a delta. A deleted one works unless the options require
// that the base exists.
func (s *metadataServer) base(id string, mustExist bool) (volume.Snapshot, error) {
	if mustExist {
		return s.store.Snapshot(id)
	}
	return s.store.Base(id)
}

// omit leaves out blocks as the option of that name says, and blocks that end before the
// offset. Which blocks it omits does not depend on the offset, so that a resumed stream lies
// like the one before.
func omit(amount float64, offset int64, changed func(from int64) iter.Seq2[extent.Range, error]) iter.Seq2[extent.Range, error] {
	if amount == 0 {
		return changed(offset)
	}
	return func(yield func(extent.Range, error) bool) {
		left := int64(amount) // none when the amount is a fraction
		for block, err := range changed(0) {
			if err == nil && left > 0 {
				left--
				continue
			}
			if err == nil && (amount < 1 && fraction(block.Start) < amount || block.End <= offset) {
				continue
			}
			if !yield(block, err) {
				return
			}
		}
	}
}

// fraction maps an offset to [0, 1), always in the same way.
func fraction(offset int64) float64 {
	hash := fnv.New64a()
	for shift := 0; shift < 64; shift += 8 {
		hash.Write([]byte{byte(offset >> shift)})
	}
	// FNV mixes its last bytes into the high bits badly; one multiplication by
	// the 64-bit golden ratio spreads them.
	return float64(hash.Sum64()*0x9e3779b97f4a7c15) / math.MaxUint64
}

// message is what the responses of both calls share.
type message struct {
	blockType csi.BlockMetadataType
	capacity  int64
	blocks    []*csi.BlockMetadata
}

// sender packs blocks into messages and misbehaves as the options say.
type sender struct {
	options  options.Options
	capacity int64
	limit    int
	send     func(message) error

	pending []*csi.BlockMetadata
	sent    int
}

func newSender(loaded options.Options, capacity int64, maxResults int32, send func(message) error) *sender {
	limit := int(maxResults)
	if limit <= 0 {
		limit = defaultResults
	}
	return &sender{options: loaded, capacity: capacity, limit: limit, send: send}
}

// sendAll sends all blocks. A stream without blocks has one message, for the
// capacity.
func (s *sender) sendAll(ctx context.Context, blocks iter.Seq2[extent.Range, error]) error {
	if s.options.BlockType == options.Variable {
		blocks = joined(blocks)
	}
	for block, err := range blocks {
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if len(s.pending) == s.limit {
			if err := s.flush(); err != nil {
				return err
			}
		}
		s.pending = append(s.pending, s.describe(block))
	}
	if len(s.pending) > 0 || s.sent == 0 {
		if err := s.flush(); err != nil {
			return err
		}
	}
	if s.options.WrongBlocks == options.Beyond {
		s.pending = []*csi.BlockMetadata{{ByteOffset: s.capacity, SizeBytes: s.options.BlockSize}}
		return s.flush()
	}
	return nil
}

func (s *sender) describe(block extent.Range) *csi.BlockMetadata {
	size := block.End - block.Start
	if s.options.OverrunTail && s.options.BlockType == options.Fixed {
		size = s.options.BlockSize
	}
	return &csi.BlockMetadata{ByteOffset: block.Start, SizeBytes: size}
}

// joined merges blocks that touch.
func joined(blocks iter.Seq2[extent.Range, error]) iter.Seq2[extent.Range, error] {
	return func(yield func(extent.Range, error) bool) {
		var last extent.Range
		for block, err := range blocks {
			switch {
			case err != nil:
				yield(extent.Range{}, err)
				return
			case block.Start == last.End && last.End > last.Start:
				last.End = block.End
				continue
			case last.End > last.Start && !yield(last, nil):
				return
			}
			last = block
		}
		if last.End > last.Start {
			yield(last, nil)
		}
	}
}

// flush sends the pending blocks as one message.
func (s *sender) flush() error {
	m := message{blockType: csi.BlockMetadataType_FIXED_LENGTH, capacity: s.capacity, blocks: s.pending}
	if s.options.BlockType == options.Variable {
		m.blockType = csi.BlockMetadataType_VARIABLE_LENGTH
	}
	first := s.sent == 0
	spoil(&m, s.options.WrongBlocks, first)
	s.pending = nil
	if first && s.options.WrongBlocks == options.Overlap {
		if err := s.sendOne(m); err != nil {
			return err
		}
	}
	return s.sendOne(m)
}

// sendOne sends a message, or breaks the stream if the options say so.
func (s *sender) sendOne(m message) error {
	if limit := s.options.BreakStreamAfterMessages; limit > 0 && s.sent == limit {
		return status.Errorf(codes.Unavailable, "stream broken after %d messages by the driver's options", limit)
	}
	s.sent++
	return s.send(m)
}
