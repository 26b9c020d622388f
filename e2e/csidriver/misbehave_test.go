package main

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
)

const chunk = 65536

// changedVolume is a volume of 8 MiB with two snapshots; all its even blocks of
// 64 KiB differ between them.
func changedVolume(t *testing.T) (f *fixture, volume *csi.Volume, delta *csi.GetMetadataDeltaRequest) {
	t.Helper()
	f = startDriver(t)
	volume = f.create("volume", 8*mib, blockCapability(), nil)
	device := f.publish(volume.GetVolumeId(), blockCapability(), false)
	first := f.snapshot("first", volume.GetVolumeId())
	random := rand.New(rand.NewPCG(9, 10))
	for offset := int64(0); offset < 8*mib; offset += 2 * chunk {
		writeAt(f, device, random, offset, chunk)
	}
	second := f.snapshot("second", volume.GetVolumeId())
	return f, volume, &csi.GetMetadataDeltaRequest{BaseSnapshotId: first.GetSnapshotId(), TargetSnapshotId: second.GetSnapshotId()}
}

const changedBlocks = 8 * mib / chunk / 2

func TestBadOptionsFailEveryCall(t *testing.T) {
	f := startDriver(t)
	f.options(`{"blocksize_": 1}`)
	_, err := f.controller.ListVolumes(t.Context(), &csi.ListVolumesRequest{})
	f.wantCode(err, codes.FailedPrecondition)
	_, err = f.node.NodeGetInfo(t.Context(), &csi.NodeGetInfoRequest{})
	f.wantCode(err, codes.FailedPrecondition)
	_, err = f.delta(&csi.GetMetadataDeltaRequest{BaseSnapshotId: "a", TargetSnapshotId: "b"})
	f.wantCode(err, codes.FailedPrecondition)
	f.options(`{}`)
	_, err = f.controller.ListVolumes(t.Context(), &csi.ListVolumesRequest{})
	f.ok(err)
}

func TestMetadataErrors(t *testing.T) {
	f, _, delta := changedVolume(t)
	stranger := f.snapshot("stranger", f.create("other", mib, blockCapability(), nil).GetVolumeId()).GetSnapshotId()
	base, target := delta.GetBaseSnapshotId(), delta.GetTargetSnapshotId()
	for name, test := range map[string]struct {
		request *csi.GetMetadataDeltaRequest
		want    codes.Code
	}{
		"no base":       {&csi.GetMetadataDeltaRequest{TargetSnapshotId: target}, codes.InvalidArgument},
		"no target":     {&csi.GetMetadataDeltaRequest{BaseSnapshotId: base}, codes.InvalidArgument},
		"other volume":  {&csi.GetMetadataDeltaRequest{BaseSnapshotId: stranger, TargetSnapshotId: target}, codes.InvalidArgument},
		"newer base":    {&csi.GetMetadataDeltaRequest{BaseSnapshotId: target, TargetSnapshotId: base}, codes.InvalidArgument},
		"base is gone":  {&csi.GetMetadataDeltaRequest{BaseSnapshotId: "snap-0", TargetSnapshotId: target}, codes.NotFound},
		"target gone":   {&csi.GetMetadataDeltaRequest{BaseSnapshotId: base, TargetSnapshotId: "snap-0"}, codes.NotFound},
		"beyond":        {&csi.GetMetadataDeltaRequest{BaseSnapshotId: base, TargetSnapshotId: target, StartingOffset: 8*mib + 1}, codes.OutOfRange},
		"before":        {&csi.GetMetadataDeltaRequest{BaseSnapshotId: base, TargetSnapshotId: target, StartingOffset: -1}, codes.OutOfRange},
		"same snapshot": {&csi.GetMetadataDeltaRequest{BaseSnapshotId: target, TargetSnapshotId: target}, codes.OK},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := f.delta(test.request)
			f.wantCode(err, test.want)
			if len(got.blocks()) > 0 {
				t.Errorf("got blocks %v", got.blocks())
			}
		})
	}
	_, err := f.allocated(&csi.GetMetadataAllocatedRequest{SnapshotId: "snap-0"})
	f.wantCode(err, codes.NotFound)
	_, err = f.allocated(&csi.GetMetadataAllocatedRequest{SnapshotId: target, StartingOffset: 8*mib + 1})
	f.wantCode(err, codes.OutOfRange)
	f.options(`{"refuseDelta": true}`)
	_, err = f.delta(delta)
	f.wantCode(err, codes.FailedPrecondition)
	_, err = f.allocated(&csi.GetMetadataAllocatedRequest{SnapshotId: target})
	f.ok(err)
	f.options(`{"refuseAllocated": true}`)
	_, err = f.allocated(&csi.GetMetadataAllocatedRequest{SnapshotId: target})
	f.wantCode(err, codes.FailedPrecondition)
	_, err = f.delta(delta)
	f.ok(err)
}

// resume asks for the rest of a delta until it ends regularly.
func resume(f *fixture, delta *csi.GetMetadataDeltaRequest) (blocks []*csi.BlockMetadata, breaks int) {
	f.Helper()
	request := proto.CloneOf(delta)
	for ; ; breaks++ {
		got, err := f.delta(request)
		blocks = append(blocks, got.blocks()...)
		if err == nil {
			return blocks, breaks
		}
		f.wantCode(err, codes.Unavailable)
		if len(got.blocks()) == 0 {
			f.Fatal("broken stream brought nothing")
		}
		last := blocks[len(blocks)-1]
		request.StartingOffset = last.GetByteOffset() + last.GetSizeBytes()
	}
}

func TestBrokenStreamCanBeResumed(t *testing.T) {
	f, _, delta := changedVolume(t)
	f.options(`{"breakStreamAfterMessages": 2}`)
	delta.MaxResults = 5
	blocks, breaks := resume(f, delta)
	if len(blocks) != changedBlocks || breaks != (changedBlocks-1)/10 {
		t.Errorf("got %d blocks and %d breaks", len(blocks), breaks)
	}
}

func TestOmittedBlocks(t *testing.T) {
	f, _, delta := changedVolume(t)
	delta.MaxResults = 7
	for amount, check := range map[float64]func(left int) bool{
		0:    func(left int) bool { return left == changedBlocks },
		0.25: func(left int) bool { return left < changedBlocks && left > changedBlocks/2 },
		3:    func(left int) bool { return left == changedBlocks-3 },
		1000: func(left int) bool { return left == 0 },
	} {
		f.options(fmt.Sprintf(`{"omitChangedBlocks": %g}`, amount))
		got, err := f.delta(delta)
		f.ok(err)
		if left := len(got.blocks()); !check(left) {
			t.Errorf("omit %g: %d of %d blocks are left", amount, left, changedBlocks)
		}
		f.options(fmt.Sprintf(`{"omitChangedBlocks": %g, "breakStreamAfterMessages": 1}`, amount))
		if resumed, _ := resume(f, delta); len(resumed) != len(got.blocks()) {
			t.Errorf("omit %g: resumed streams have %d blocks, the whole one has %d", amount, len(resumed), len(got.blocks()))
		}
	}
}

func TestWrongBlocks(t *testing.T) {
	f, _, delta := changedVolume(t)
	delta.MaxResults = 10
	ask := func(rule string) answer {
		f.options(fmt.Sprintf(`{"wrongBlocks": %q}`, rule))
		got, err := f.delta(delta)
		return must(f, got, err)
	}
	right := ask("")
	if got := ask("overlap"); !proto.Equal(got.blocks()[10], got.blocks()[0]) {
		t.Error("no overlap")
	}
	if got := ask("descending").blocks(); got[0].GetByteOffset() <= got[1].GetByteOffset() {
		t.Error("not descending")
	}
	if got := ask("beyond").blocks(); got[len(got)-1].GetByteOffset() < 8*mib {
		t.Error("not beyond")
	}
	if got := ask("empty").blocks(); got[0].GetSizeBytes() != 0 {
		t.Error("not empty")
	}
	if got := ask("wrongCapacity"); got.capacities[0] == right.capacities[0] {
		t.Error("the right capacity")
	}
	if got := ask("wrongType"); got.types[0] == right.types[0] {
		t.Error("the right type")
	}
}

func TestOverrunTail(t *testing.T) {
	f := startDriver(t)
	volume := f.create("volume", mib+512, blockCapability(), nil)
	device := f.publish(volume.GetVolumeId(), blockCapability(), false)
	writeAt(f, device, rand.New(rand.NewPCG(11, 12)), mib, 512)
	taken := f.snapshot("snapshot", volume.GetVolumeId())
	for content, want := range map[string]int64{
		`{}`:                    512,
		`{"overrunTail": true}`: chunk,
		`{"overrunTail": true, "blockType": "VARIABLE"}`: 512,
	} {
		f.options(content)
		got, err := f.allocated(&csi.GetMetadataAllocatedRequest{SnapshotId: taken.GetSnapshotId()})
		f.ok(err)
		if blocks := got.blocks(); len(blocks) != 1 || blocks[0].GetSizeBytes() != want {
			t.Errorf("%s: got %v, want one block of %d", content, blocks, want)
		}
	}
}

func TestDeletedBase(t *testing.T) {
	f, volume, delta := changedVolume(t)
	f.options(`{"requireBaseSnapshotForDelta": false}`)
	f.deleteSnapshot(delta.GetBaseSnapshotId())
	got, err := f.delta(delta)
	if f.ok(err); len(got.blocks()) != changedBlocks {
		t.Errorf("delta with a deleted base has %d blocks, want %d", len(got.blocks()), changedBlocks)
	}
	listed, err := f.controller.ListSnapshots(t.Context(), &csi.ListSnapshotsRequest{SourceVolumeId: volume.GetVolumeId()})
	if entries := must(f, listed, err).GetEntries(); len(entries) != 1 {
		t.Errorf("a deleted snapshot is listed: %v", entries)
	}
	f.options(`{"requireBaseSnapshotForDelta": true}`)
	_, err = f.delta(delta)
	f.wantCode(err, codes.NotFound)
}

func TestSlowSnapshot(t *testing.T) {
	f, volume, _ := changedVolume(t)
	f.options(`{"snapshotDelay": "300ms"}`)
	began := time.Now()
	taken := f.snapshot("slow", volume.GetVolumeId())
	if taken.GetReadyToUse() {
		t.Error("snapshot is ready at once")
	}
	_, err := f.allocated(&csi.GetMetadataAllocatedRequest{SnapshotId: taken.GetSnapshotId()})
	f.wantCode(err, codes.Unavailable)
	_, err = f.controller.CreateVolume(t.Context(), &csi.CreateVolumeRequest{
		Name: "early", VolumeCapabilities: []*csi.VolumeCapability{blockCapability()}, VolumeContentSource: fromSnapshot(taken.GetSnapshotId()),
	})
	f.wantCode(err, codes.Unavailable)
	response, err := f.groups.CreateVolumeGroupSnapshot(t.Context(), &csi.CreateVolumeGroupSnapshotRequest{
		Name: "slow group", SourceVolumeIds: []string{volume.GetVolumeId()},
	})
	if must(f, response, err).GetGroupSnapshot().GetReadyToUse() {
		t.Error("group is ready at once")
	}
	time.Sleep(time.Until(began.Add(400 * time.Millisecond)))
	if !f.snapshot("slow", volume.GetVolumeId()).GetReadyToUse() {
		t.Error("snapshot is not ready in time")
	}
}

func TestFailingSnapshots(t *testing.T) {
	f, volume, _ := changedVolume(t)
	request := &csi.CreateSnapshotRequest{Name: "third", SourceVolumeId: volume.GetVolumeId()}
	group := &csi.CreateVolumeGroupSnapshotRequest{Name: "group", SourceVolumeIds: []string{volume.GetVolumeId()}}
	for content, want := range map[string][2]codes.Code{
		`{"createSnapshotError": "storage is on fire"}`:           {codes.Internal, codes.OK},
		`{"createSnapshotError": "RESOURCE_EXHAUSTED: no space"}`: {codes.ResourceExhausted, codes.OK},
		`{"groupSnapshotError": "UNAVAILABLE: later"}`:            {codes.OK, codes.Unavailable},
		`{"maxSnapshotsPerVolume": 2}`:                            {codes.ResourceExhausted, codes.ResourceExhausted},
	} {
		t.Run(content, func(t *testing.T) {
			f.options(content)
			taken, err := f.controller.CreateSnapshot(t.Context(), request)
			f.wantCode(err, want[0])
			made, err := f.groups.CreateVolumeGroupSnapshot(t.Context(), group)
			f.wantCode(err, want[1])
			f.snapshot("second", volume.GetVolumeId()) // exists, and is returned in any case
			f.options(`{}`)
			if taken != nil {
				f.deleteSnapshot(taken.GetSnapshot().GetSnapshotId())
			}
			_, err = f.groups.DeleteVolumeGroupSnapshot(t.Context(), &csi.DeleteVolumeGroupSnapshotRequest{
				GroupSnapshotId: groupID(made),
			})
			f.ok(err)
		})
	}
}

// groupID returns the ID of a group, or an unknown ID if none was made.
func groupID(made *csi.CreateVolumeGroupSnapshotResponse) string {
	if made == nil {
		return "group-0"
	}
	return made.GetGroupSnapshot().GetGroupSnapshotId()
}

func TestOmittedRestoreSize(t *testing.T) {
	f, volume, _ := changedVolume(t)
	f.options(`{"omitRestoreSize": true}`)
	if size := f.snapshot("second", volume.GetVolumeId()).GetSizeBytes(); size != 0 {
		t.Errorf("size is %d", size)
	}
	f.options(`{}`)
	if size := f.snapshot("second", volume.GetVolumeId()).GetSizeBytes(); size != 8*mib {
		t.Errorf("size is %d", size)
	}
}

// TestShrink replaces a volume by a smaller one under its handle.
func TestShrink(t *testing.T) {
	f, volume, delta := changedVolume(t)
	_, device := f.paths(volume.GetVolumeId())
	f.options(fmt.Sprintf(`{"shrinkTo": {%q: %d, "vol-none": 512}}`, volume.GetVolumeId(), 3*mib))
	third := f.snapshot("third", volume.GetVolumeId())
	if size := deviceSize(f, device); size != 3*mib || third.GetSizeBytes() != 3*mib {
		t.Errorf("device has %d bytes, snapshot %d", size, third.GetSizeBytes())
	}
	got, err := f.delta(&csi.GetMetadataDeltaRequest{BaseSnapshotId: delta.GetTargetSnapshotId(), TargetSnapshotId: third.GetSnapshotId()})
	if f.ok(err); len(got.blocks()) > 0 || got.capacities[0] != 3*mib {
		t.Errorf("delta of a volume that only shrank: %v of %d", got.blocks(), got.capacities[0])
	}
}
