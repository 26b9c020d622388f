package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
)

// TestBlockVolume writes, discards and takes snapshots of a Block volume. It compares what
// the driver reports with the content, which it reads from clones.
func TestBlockVolume(t *testing.T) {
	f := startDriver(t)
	const size = 40*mib + 512 // no multiple of anything but a sector
	created := f.create("source", size, blockCapability(), nil)
	if created.GetCapacityBytes() != size {
		t.Fatalf("capacity is %d, want %d", created.GetCapacityBytes(), size)
	}
	device := f.publish(created.GetVolumeId(), blockCapability(), false)

	random := rand.New(rand.NewPCG(1, 2))
	writeAt(f, device, random, 0, 3*mib)
	writeAt(f, device, random, 20*mib+4096, 70_000)
	writeAt(f, device, random, size-512, 512)
	first := f.snapshot("first", created.GetVolumeId())
	writeAt(f, device, random, mib+512, 512)
	writeAt(f, device, random, 30*mib, mib)
	discard(f, device, 2*mib, 512*1024)
	second := f.snapshot("second", created.GetVolumeId())
	writeAt(f, device, random, 0, 40*mib) // must not show in the snapshots

	before, after := f.contentOf(first), f.contentOf(second)
	for _, blockSize := range []int64{512, 4096, 65536, mib} {
		for _, blockType := range []string{"FIXED", "VARIABLE"} {
			t.Run(fmt.Sprintf("%s of %d", blockType, blockSize), func(t *testing.T) {
				f.options(fmt.Sprintf(`{"blockType": %q, "blockSize": %d}`, blockType, blockSize))
				for _, offset := range []int64{0, 1, 2*mib - 1, 2 * mib, size - 1, size} {
					delta, err := f.delta(&csi.GetMetadataDeltaRequest{
						BaseSnapshotId: first.GetSnapshotId(), TargetSnapshotId: second.GetSnapshotId(), StartingOffset: offset, MaxResults: 7,
					})
					f.ok(err)
					checkBlocks(t, delta, blockType, blockSize, size, offset, 7, func(start, end int64) bool {
						return !bytes.Equal(before[start:end], after[start:end])
					})
					allocated, err := f.allocated(&csi.GetMetadataAllocatedRequest{SnapshotId: second.GetSnapshotId(), StartingOffset: offset})
					f.ok(err)
					checkBlocks(t, allocated, blockType, blockSize, size, offset, 256, func(start, end int64) bool {
						// All that was written has data; the filesystem allocates
						// 4 KiB at a time.
						start, end = start/4096*4096, min((end+4095)/4096*4096, size)
						return len(bytes.Trim(after[start:end], "\x00")) > 0
					})
				}
			})
		}
	}
	f.unpublish(created.GetVolumeId())
}

// checkBlocks compares an answer with the blocks for which want is true, from the one that
// holds the offset on.
func checkBlocks(t *testing.T, got answer, blockType string, blockSize, capacity, offset int64, limit int, want func(start, end int64) bool) {
	t.Helper()
	for i, message := range got.messages {
		if got.capacities[i] != capacity || got.types[i].String() != blockType+"_LENGTH" || len(message) > limit {
			t.Errorf("message %d has capacity %d, type %s and %d blocks", i, got.capacities[i], got.types[i], len(message))
		}
	}
	reported := map[int64]bool{}
	end := int64(-1)
	for _, block := range got.blocks() {
		start := block.GetByteOffset()
		if start < end || block.GetSizeBytes() <= 0 || blockType == "VARIABLE" && start == end {
			t.Fatalf("block at %d of %d bytes follows one that ends at %d", start, block.GetSizeBytes(), end)
		}
		end = start + block.GetSizeBytes()
		if blockType == "FIXED" && block.GetSizeBytes() != min(blockSize, capacity-start) {
			t.Fatalf("fixed block at %d has %d bytes", start, block.GetSizeBytes())
		}
		for at := start; at < end; at += blockSize {
			reported[at] = true
		}
	}
	if end > capacity {
		t.Errorf("blocks end at %d, beyond %d", end, capacity)
	}
	expected := 0
	for start := offset / blockSize * blockSize; start < capacity; start += blockSize {
		if want(start, min(start+blockSize, capacity)) {
			expected++
			if !reported[start] {
				t.Fatalf("block at %d is missing", start)
			}
		}
	}
	if len(reported) != expected {
		t.Fatalf("%d blocks are reported, want %d", len(reported), expected)
	}
}

// contentOf reads a snapshot from a read-only clone, which must refuse writes.
func (f *fixture) contentOf(snapshot *csi.Snapshot) []byte {
	f.Helper()
	clone := f.create("clone of "+snapshot.GetSnapshotId(), 0, blockCapability(), fromSnapshot(snapshot.GetSnapshotId()))
	device := f.publish(clone.GetVolumeId(), blockCapability(), true)
	content, err := os.ReadFile(device)
	f.ok(err)
	if file, err := os.OpenFile(device, os.O_WRONLY, 0); err == nil {
		if _, err := file.WriteAt([]byte("must fail"), 0); err == nil && file.Sync() == nil {
			f.Error("a read-only device took a write")
		}
		_ = file.Close()
	}
	f.unpublish(clone.GetVolumeId())
	_, err = f.controller.DeleteVolume(f.Context(), &csi.DeleteVolumeRequest{VolumeId: clone.GetVolumeId()})
	f.ok(err)
	return content
}

// writeAt writes random bytes without syncing them. A snapshot must have them all the same.
func writeAt(f *fixture, path string, random *rand.Rand, offset, length int64) {
	f.Helper()
	data := make([]byte, length)
	for i := range data {
		data[i] = byte(random.Uint32() | 1) // no zero, so that what is written has data
	}
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	f.ok(err)
	_, err = file.WriteAt(data, offset)
	f.ok(errors.Join(err, file.Close()))
}

func discard(f *fixture, path string, offset, length uint64) {
	f.Helper()
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	f.ok(err)
	defer file.Close()
	extent := [2]uint64{offset, length}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, file.Fd(), unix.BLKDISCARD, uintptr(unsafe.Pointer(&extent)))
	if errno != 0 {
		f.Fatal(errno)
	}
}

// TestLogicalBlockSize is a StorageClass with 4 KiB sectors.
func TestLogicalBlockSize(t *testing.T) {
	f := startDriver(t)
	request := &csi.CreateVolumeRequest{
		Name: "sectors", CapacityRange: &csi.CapacityRange{RequiredBytes: mib + 512},
		VolumeCapabilities: []*csi.VolumeCapability{blockCapability()}, Parameters: map[string]string{"blockSize": "4096"},
	}
	response, err := f.controller.CreateVolume(t.Context(), request)
	volume := must(f, response, err).GetVolume()
	if volume.GetCapacityBytes() != mib+4096 {
		t.Errorf("capacity is %d, want it rounded up to the next 4096", volume.GetCapacityBytes())
	}
	file, err := os.Open(f.publish(volume.GetVolumeId(), blockCapability(), false))
	f.ok(err)
	defer file.Close()
	if sector, err := unix.IoctlGetInt(int(file.Fd()), unix.BLKSSZGET); err != nil || sector != 4096 {
		t.Errorf("logical block size is %d, %v", sector, err)
	}
	for name, value := range map[string]string{"blockSize": "100", "speed": "fast"} {
		_, err := f.controller.CreateVolume(t.Context(), &csi.CreateVolumeRequest{
			Name: name, VolumeCapabilities: request.GetVolumeCapabilities(), Parameters: map[string]string{name: value},
		})
		f.wantCode(err, codes.InvalidArgument)
	}
}

// TestFilesystem takes a snapshot of a mounted filesystem right after a write,
// and mounts a larger clone beside it.
func TestFilesystem(t *testing.T) {
	const size, larger = 400 * mib, 600 * mib
	for _, fsType := range []string{"ext4", "xfs"} {
		t.Run(fsType, func(t *testing.T) {
			f := startDriver(t)
			source := f.create("source", size, mountCapability(fsType), nil)
			dir := f.publish(source.GetVolumeId(), mountCapability(fsType), false)
			random := rand.New(rand.NewPCG(3, 4))
			f.ok(os.WriteFile(filepath.Join(dir, "file"), nil, 0o600))
			writeAt(f, filepath.Join(dir, "file"), random, 0, 5*mib)
			content, err := os.ReadFile(filepath.Join(dir, "file"))
			f.ok(err)
			taken := f.snapshot("snapshot", source.GetVolumeId())
			f.ok(os.WriteFile(filepath.Join(dir, "later"), []byte("not in the snapshot"), 0o600))

			for name, origin := range map[string]*csi.VolumeContentSource{
				"of snapshot": fromSnapshot(taken.GetSnapshotId()), "of volume": fromVolume(source.GetVolumeId()),
			} {
				clone := f.create(name, larger, mountCapability(fsType), origin)
				cloneDir := f.publish(clone.GetVolumeId(), mountCapability(fsType), false)
				cloned, err := os.ReadFile(filepath.Join(cloneDir, "file"))
				if err != nil || !bytes.Equal(cloned, content) {
					t.Errorf("%s: %d bytes of file differ from the source's: %v", name, len(cloned), err)
				}
				_, err = os.Stat(filepath.Join(cloneDir, "later"))
				if existed := err == nil; existed != (origin.GetVolume() != nil) {
					t.Errorf("%s: existence of a file that was written after the snapshot: %v", name, existed)
				}
				checkCapacity(f, clone.GetVolumeId(), larger)
				f.unpublish(clone.GetVolumeId())
			}
			checkClean(f, fsType, taken)
			expand(f, source.GetVolumeId(), fsType, larger)
			f.unpublish(source.GetVolumeId())
		})
	}
}

// checkClean runs the filesystem's own check on an unmounted clone.
func checkClean(f *fixture, fsType string, snapshot *csi.Snapshot) {
	f.Helper()
	clone := f.create("clone to check of "+snapshot.GetSnapshotId(), 0, blockCapability(), fromSnapshot(snapshot.GetSnapshotId()))
	command := "e2fsck"
	arguments := []string{"-fn"}
	if fsType == "xfs" {
		// A frozen XFS keeps its log, which only a mount replays.
		f.publish(clone.GetVolumeId(), mountCapability(fsType), false)
		f.unpublish(clone.GetVolumeId())
		command, arguments = "xfs_repair", []string{"-n"}
	}
	device := f.publish(clone.GetVolumeId(), blockCapability(), true)
	defer f.unpublish(clone.GetVolumeId())
	if output, err := exec.Command(command, append(arguments, device)...).CombinedOutput(); err != nil {
		f.Errorf("%s: %v\n%s", command, err, output)
	}
}

// expand grows a published filesystem. Without CAP_SYS_RESOURCE the kernel does not let the
// driver grow a mounted ext4. Then staging it again must grow it.
func expand(f *fixture, volumeID, fsType string, size int64) {
	f.Helper()
	_, target := f.paths(volumeID)
	capacity := &csi.CapacityRange{RequiredBytes: size}
	_, err := f.controller.ControllerExpandVolume(f.Context(), &csi.ControllerExpandVolumeRequest{VolumeId: volumeID, CapacityRange: capacity})
	f.ok(err)
	request := &csi.NodeExpandVolumeRequest{VolumeId: volumeID, VolumePath: target, CapacityRange: capacity}
	_, err = f.node.NodeExpandVolume(f.Context(), request)
	if fsType == "ext4" && err != nil && strings.Contains(err.Error(), "CAP_SYS_RESOURCE") {
		f.unpublish(volumeID)
		f.publish(volumeID, mountCapability(fsType), false)
		_, err = f.node.NodeExpandVolume(f.Context(), request)
	}
	f.ok(err)
	checkCapacity(f, volumeID, size)
}

// checkCapacity compares the capacity of a filesystem with the size of its volume. The
// filesystem may use a tenth for itself.
func checkCapacity(f *fixture, volumeID string, size int64) {
	f.Helper()
	_, target := f.paths(volumeID)
	stats, err := f.node.NodeGetVolumeStats(f.Context(), &csi.NodeGetVolumeStatsRequest{VolumeId: volumeID, VolumePath: target})
	total := must(f, stats, err).GetUsage()[0].GetTotal()
	if total > size || total < size-size/5 {
		f.Errorf("filesystem has %d bytes on a volume of %d", total, size)
	}
}

// TestUnknownContentIsNotFormatted: the driver does not format a volume with unknown content.
func TestUnknownContentIsNotFormatted(t *testing.T) {
	f := startDriver(t)
	volume := f.create("data", 10*mib, blockCapability(), nil)
	device := f.publish(volume.GetVolumeId(), blockCapability(), false)
	writeAt(f, device, rand.New(rand.NewPCG(5, 6)), 8192, 512)
	f.unpublish(volume.GetVolumeId())
	staging, _ := f.paths(volume.GetVolumeId())
	_, err := f.node.NodeStageVolume(t.Context(), &csi.NodeStageVolumeRequest{
		VolumeId: volume.GetVolumeId(), StagingTargetPath: staging, VolumeCapability: mountCapability("ext4"),
	})
	f.wantCode(err, codes.FailedPrecondition)
	f.unpublish(volume.GetVolumeId())
}

// TestExpandBlock grows an attached Block volume. The growth counts as changed.
func TestExpandBlock(t *testing.T) {
	f := startDriver(t)
	volume := f.create("block", 4*mib, blockCapability(), nil)
	device := f.publish(volume.GetVolumeId(), blockCapability(), false)
	first := f.snapshot("first", volume.GetVolumeId())
	_, err := f.controller.ControllerExpandVolume(t.Context(), &csi.ControllerExpandVolumeRequest{
		VolumeId: volume.GetVolumeId(), CapacityRange: &csi.CapacityRange{RequiredBytes: 6*mib + 512}, VolumeCapability: blockCapability(),
	})
	f.ok(err)
	if size := deviceSize(f, device); size != 6*mib+512 {
		t.Errorf("device has %d bytes after expansion", size)
	}
	second := f.snapshot("second", volume.GetVolumeId())
	f.options(`{"blockType": "VARIABLE"}`)
	delta, err := f.delta(&csi.GetMetadataDeltaRequest{BaseSnapshotId: first.GetSnapshotId(), TargetSnapshotId: second.GetSnapshotId()})
	f.ok(err)
	checkBlocks(t, delta, "VARIABLE", 65536, 6*mib+512, 0, 256, func(start, _ int64) bool { return start >= 4*mib })
}

func deviceSize(f *fixture, path string) int64 {
	f.Helper()
	device, err := os.Open(path)
	f.ok(err)
	defer device.Close()
	size, err := device.Seek(0, io.SeekEnd)
	return must(f, size, err)
}

// TestGroup makes, reads and deletes group snapshots.
func TestGroup(t *testing.T) {
	f := startDriver(t)
	a, b := f.create("a", mib, blockCapability(), nil), f.create("b", 2*mib, blockCapability(), nil)
	ids := []string{b.GetVolumeId(), a.GetVolumeId()}
	request := &csi.CreateVolumeGroupSnapshotRequest{Name: "group", SourceVolumeIds: ids}
	response, err := f.groups.CreateVolumeGroupSnapshot(t.Context(), request)
	group := must(f, response, err).GetGroupSnapshot()
	if len(group.GetSnapshots()) != 2 || !group.GetReadyToUse() {
		t.Fatalf("group is %v", group)
	}
	again, err := f.groups.CreateVolumeGroupSnapshot(t.Context(), request)
	if must(f, again, err).GetGroupSnapshot().GetGroupSnapshotId() != group.GetGroupSnapshotId() {
		t.Error("the same request made another group")
	}
	_, err = f.groups.CreateVolumeGroupSnapshot(t.Context(), &csi.CreateVolumeGroupSnapshotRequest{Name: "group", SourceVolumeIds: ids[:1]})
	f.wantCode(err, codes.AlreadyExists)
	_, err = f.groups.CreateVolumeGroupSnapshot(t.Context(), &csi.CreateVolumeGroupSnapshotRequest{Name: "other", SourceVolumeIds: []string{"vol-none"}})
	f.wantCode(err, codes.NotFound)
	log, err := os.ReadFile(filepath.Join(f.stateDir, "groups.log"))
	if f.ok(err); bytes.Count(log, []byte("\n")) != 1 || !bytes.Contains(log, []byte(a.GetVolumeId())) || !bytes.Contains(log, []byte(b.GetVolumeId())) {
		t.Errorf("log of groups is %s", log)
	}

	alone := f.snapshot("alone", a.GetVolumeId())
	_, err = f.groups.GetVolumeGroupSnapshot(t.Context(), &csi.GetVolumeGroupSnapshotRequest{
		GroupSnapshotId: group.GetGroupSnapshotId(), SnapshotIds: []string{alone.GetSnapshotId()},
	})
	f.wantCode(err, codes.InvalidArgument)
	_, err = f.controller.DeleteSnapshot(t.Context(), &csi.DeleteSnapshotRequest{SnapshotId: group.GetSnapshots()[0].GetSnapshotId()})
	f.wantCode(err, codes.InvalidArgument)
	f.options(`{"refuseMemberDelete": false}`)
	f.deleteSnapshot(group.GetSnapshots()[0].GetSnapshotId())
	_, err = f.groups.DeleteVolumeGroupSnapshot(t.Context(), &csi.DeleteVolumeGroupSnapshotRequest{
		GroupSnapshotId: group.GetGroupSnapshotId(), SnapshotIds: []string{group.GetSnapshots()[0].GetSnapshotId(), group.GetSnapshots()[1].GetSnapshotId()},
	})
	f.ok(err)
	listed, err := f.controller.ListSnapshots(t.Context(), &csi.ListSnapshotsRequest{})
	if entries := must(f, listed, err).GetEntries(); len(entries) != 1 || entries[0].GetSnapshot().GetSnapshotId() != alone.GetSnapshotId() {
		t.Errorf("left after the group was deleted: %v", entries)
	}
}

// TestGroupOfFilesystems takes group snapshots of mounted filesystems that are
// written to: each write is synced before the next one, to the other volume.
func TestGroupOfFilesystems(t *testing.T) {
	f := startDriver(t)
	const groups = 5
	var ids, files []string
	for i := range 2 {
		volume := f.create(fmt.Sprintf("volume-%d", i), 64*mib, mountCapability("ext4"), nil)
		ids = append(ids, volume.GetVolumeId())
		files = append(files, filepath.Join(f.publish(volume.GetVolumeId(), mountCapability("ext4"), false), "counter"))
	}
	for _, file := range files { // the first group may come before the first count
		f.ok(os.WriteFile(file, make([]byte, 8), 0o600))
	}
	stop, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- countInTurn(stop, files) }()
	var taken []*csi.VolumeGroupSnapshot
	for i := range groups {
		response, err := f.groups.CreateVolumeGroupSnapshot(t.Context(), &csi.CreateVolumeGroupSnapshotRequest{
			Name: fmt.Sprintf("group-%d", i), SourceVolumeIds: ids,
		})
		taken = append(taken, must(f, response, err).GetGroupSnapshot())
	}
	close(stop)
	f.ok(<-ended)
	for i, group := range taken {
		counters := map[string]uint64{}
		for _, member := range group.GetSnapshots() {
			checkClean(f, "ext4", member)
			clone := f.create("mounted "+member.GetSnapshotId(), 0, mountCapability("ext4"), fromSnapshot(member.GetSnapshotId()))
			content, err := os.ReadFile(filepath.Join(f.publish(clone.GetVolumeId(), mountCapability("ext4"), false), "counter"))
			if must(f, content, err); len(content) == 8 {
				counters[member.GetSourceVolumeId()] = binary.LittleEndian.Uint64(content)
			}
			f.unpublish(clone.GetVolumeId())
		}
		if first, second := counters[ids[0]], counters[ids[1]]; second > first || first > second+1 {
			t.Errorf("group %d shows %d and %d, which was never so", i, first, second)
		}
	}
	for _, id := range ids {
		f.unpublish(id)
	}
}

// countInTurn writes an ascending counter to the files in turn.
func countInTurn(stop <-chan struct{}, paths []string) error {
	var files []*os.File
	for _, path := range paths {
		file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_SYNC, 0o600)
		if err != nil {
			return err
		}
		defer file.Close()
		files = append(files, file)
	}
	for counter := uint64(1); ; counter++ {
		select {
		case <-stop:
			return nil
		default:
		}
		for _, file := range files {
			if _, err := file.WriteAt(binary.LittleEndian.AppendUint64(nil, counter), 0); err != nil {
				return err
			}
		}
	}
}
