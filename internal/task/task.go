// Package task defines the two documents that the manager and a mover pod
// exchange: the Request, in the pod's environment, and the Report, in its
// termination message. Both are strict JSON: an unknown field, a missing one or
// another version is an error, never a default.
//
// The package is pure.
package task

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/blockmover/blockmover/internal/chain"
	"github.com/blockmover/blockmover/internal/fault"
	"github.com/blockmover/blockmover/internal/inplace"
	"github.com/blockmover/blockmover/internal/policy"
	"github.com/blockmover/blockmover/internal/repository"
)

// Version of both documents.
const Version = 1

// MaxReportBytes is the most of a termination message that the kubelet keeps.
const MaxReportBytes = 4096

// maxCount bounds the counts of a report: some are added up. No volume has so many bytes.
const maxCount = 1 << 60

// MinRateLimit is the lowest rate limit, in bytes per second. Below it, one chunk of an image
// would take longer than the timeouts.
const MinRateLimit = 64 << 10

// Request tells a mover pod what to do. Exactly one of Backup and Restore is set.
type Request struct {
	Version int `json:"version"`
	// Namespace (Velero's) and Name of the DataUpload or DataDownload.
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	// OperationID is stored with the repo snapshot. A repeated operation finds by it what it
	// saved before.
	OperationID string `json:"operationID"`
	// Device is the path of the block device in the pod. With Backup.DiskFile or
	// Restore.DiskImage it is that of a directory.
	Device string `json:"device"`
	// BackupRepository is the name of Velero's object in Namespace.
	BackupRepository string               `json:"backupRepository"`
	Volume           repository.VolumeKey `json:"volume"`
	// RateLimit is the most bytes per second that are read from the device or written to it.
	// 0 is no limit; otherwise it is MinRateLimit or more.
	RateLimit int64    `json:"rateLimit,omitempty"`
	Backup    *Backup  `json:"backup,omitempty"`
	Restore   *Restore `json:"restore,omitempty"`
}

// Backup describes the snapshot that is on the device, and the choice of parent.
type Backup struct {
	// ParentSnapshot is "auto", "none" or a repo snapshot ID.
	ParentSnapshot string `json:"parentSnapshot"`
	// FullEvery is the age at which a full image is due; 0 is never.
	FullEvery time.Duration `json:"fullEvery,omitempty"`
	// Audit is a policy.Percent as text.
	Audit string `json:"audit"`
	// Failed are the operation IDs of uploads of this volume that failed or were canceled.
	// Repo snapshots that they saved are no backups.
	Failed         []string  `json:"failed,omitempty"`
	Driver         string    `json:"driver"`
	VolumeHandle   string    `json:"volumeHandle"`
	SnapshotHandle string    `json:"snapshotHandle"`
	SnapshotTime   time.Time `json:"snapshotTime"`
	// VolumeSnapshot is the name of the re-homed VolumeSnapshot in Namespace. Only a disk of a
	// VM has none.
	VolumeSnapshot string `json:"volumeSnapshot,omitempty"`
	// Capacity is that of the source's PersistentVolume in bytes, and Filesystem what that
	// names. Both are empty if they are not known.
	Capacity   int64  `json:"capacity,omitempty"`
	Filesystem string `json:"filesystem,omitempty"`
	// Metadata says where the SnapshotMetadata service of the driver answers. If it is nil,
	// MetadataUnavailable says why.
	Metadata            *MetadataService `json:"metadata,omitempty"`
	MetadataUnavailable string           `json:"metadataUnavailable,omitempty"`
	// DiskFile is set for a disk of a VM. Then VolumeSnapshot and both fields of the metadata
	// service are empty.
	DiskFile *DiskFile `json:"diskFile,omitempty"`
}

// DiskFile names the qcow2 file of one disk of a VM, as KubeVirt writes it into the volume of a
// VirtualMachineBackup:
//
//	<instance>/<backup>-<creation time>/<backup>-<volume>.qcow2
type DiskFile struct {
	Instance string `json:"instance"`
	Backup   string `json:"backup"`
	Volume   string `json:"volume"`
	// Since is the change ID of the image that the file holds the changes to. It is empty if
	// the file holds the whole disk; then Full says why.
	Since string       `json:"since,omitempty"`
	Full  []chain.Step `json:"full,omitempty"`
}

// MetadataService is a SnapshotMetadataService as its custom resource describes it.
type MetadataService struct {
	Address string `json:"address"`
	// CACert is the PEM bundle that signs the service's certificate.
	CACert []byte `json:"caCert"`
	// TokenPath is the file with a projected service account token for the
	// service's audience, kept fresh by the kubelet.
	TokenPath string `json:"tokenPath"`
}

// Restore names the image to write to the device.
type Restore struct {
	SnapshotID repository.SnapshotID `json:"snapshotID"`
	// Resume keeps what an earlier attempt has written.
	Resume bool `json:"resume,omitempty"`
	// DiskImage makes the restore write a file disk.img of the size of the image, as KubeVirt
	// wants it in a Filesystem volume.
	DiskImage bool `json:"diskImage,omitempty"`
	// InPlace is set if the device is the volume of a live PVC.
	InPlace *InPlace `json:"inPlace,omitempty"`
}

// InPlace describes the live volume that a restore writes into.
type InPlace struct {
	// Claim is namespace/name of its PVC, for messages, and ClaimUID the UID.
	Claim    string `json:"claim"`
	ClaimUID string `json:"claimUID,omitempty"`
	// Mode is SameVolume or AnyVolume.
	Mode         inplace.Mode `json:"mode"`
	Driver       string       `json:"driver"`
	VolumeHandle string       `json:"volumeHandle"`
	// Audit is a policy.Percent as text.
	Audit string `json:"audit"`
	// VolumeSnapshot is the name of the one that the manager takes in Namespace when the worker
	// has the device to itself; see Progress.Held. Metadata says where the SnapshotMetadata
	// service of the driver answers. If it is nil, MetadataUnavailable says why nobody asks it.
	VolumeSnapshot      string           `json:"volumeSnapshot,omitempty"`
	Metadata            *MetadataService `json:"metadata,omitempty"`
	MetadataUnavailable string           `json:"metadataUnavailable,omitempty"`
}

// Report is what a mover pod did.
type Report struct {
	Version int `json:"version"`
	// Error is empty when the operation succeeded. Class says what follows from it.
	Error string      `json:"error,omitempty"`
	Class fault.Class `json:"class,omitempty"`
	// SnapshotID, Kind, Reason and Parent describe a backup. Reason says why an image is Full
	// although an incremental one was asked for, or why blocks were read that CBT could have
	// excluded. Of a restore in place, SnapshotID is what was restored, and Parent the base that
	// CBT began at.
	SnapshotID repository.SnapshotID `json:"snapshotID,omitempty"`
	Kind       repository.Kind       `json:"kind,omitempty"`
	Reason     string                `json:"reason,omitempty"`
	// Reasons are all reasons, including Reason.
	Reasons []string `json:"reasons,omitempty"`
	// Detail explains the reasons to people, with the storage's own errors.
	Detail string                `json:"detail,omitempty"`
	Parent repository.SnapshotID `json:"parent,omitempty"`
	// VolumeSize and what follows are bytes and counts.
	VolumeSize    int64 `json:"volumeSize"`
	BytesRead     int64 `json:"bytesRead"`
	BytesUploaded int64 `json:"bytesUploaded"`
	BytesWritten  int64 `json:"bytesWritten,omitempty"`
	// IncompressibleBytes of BytesUploaded cannot be compressed.
	IncompressibleBytes int64         `json:"incompressibleBytes,omitempty"`
	BytesFound          int64         `json:"bytesFound,omitempty"`
	ZeroBytes           int64         `json:"zeroBytes"`
	MetadataBytes       int64         `json:"metadataBytes"`
	ChunksWritten       int64         `json:"chunksWritten"`
	ChunksInherited     int64         `json:"chunksInherited"`
	Duration            time.Duration `json:"duration"`
	// Filesystem is what a restored volume holds ("ext4", "xfs", "btrfs"). It is empty if it
	// is none of them.
	Filesystem string `json:"filesystem,omitempty"`
	// Resumptions is how often a stream of block metadata broke and was resumed.
	Resumptions int64 `json:"resumptions,omitempty"`
	// ChunksAudited and BytesAudited were called unchanged by the storage, read all the same,
	// and compared with the parent. BytesRead does not include them.
	ChunksAudited int64 `json:"chunksAudited,omitempty"`
	BytesAudited  int64 `json:"bytesAudited,omitempty"`
	// VolumeHandle is that of the volume that was backed up.
	VolumeHandle string `json:"volumeHandle,omitempty"`
	// Untouched is set if a restore has written nothing.
	Untouched bool `json:"untouched,omitempty"`
	// Steps are parts of Duration.
	Steps Steps `json:"steps,omitzero"`
}

// Steps are how long a mover pod took for what. A step to which it did not come is 0.
type Steps struct {
	// Open is the opening of the repository.
	Open time.Duration `json:"open,omitempty"`
	// Plan is the choice of what is read or written: the history of the volume, the image that is
	// restored or inherited from, and what the storage says has changed.
	Plan time.Duration `json:"plan,omitempty"`
	// Move is the copying. A restore has flushed the device at its end.
	Move time.Duration `json:"move,omitempty"`
	// Save is the writing of the last packs, of the index and of the repo snapshot.
	Save time.Duration `json:"save,omitempty"`
}

// Encode renders a valid request.
func (r Request) Encode() (string, error) {
	r.Version = Version
	if err := r.check(); err != nil {
		return "", fmt.Errorf("encode task request: %w", err)
	}
	b, err := json.Marshal(r)
	if err != nil {
		return "", fmt.Errorf("encode task request: %w", err)
	}
	return string(b), nil
}

// DecodeRequest parses and checks a request.
func DecodeRequest(s string) (Request, error) {
	var r Request
	if err := decodeStrict(s, &r); err != nil {
		return Request{}, fmt.Errorf("decode task request: %w", err)
	}
	if err := r.check(); err != nil {
		return Request{}, fmt.Errorf("decode task request: %w", err)
	}
	return r, nil
}

func (r Request) check() error {
	switch {
	case r.Version != Version:
		return fmt.Errorf("version is %d, want %d", r.Version, Version)
	case r.Namespace == "" || r.Name == "":
		return errors.New("namespace or name of the operation is missing")
	case r.OperationID == "":
		return errors.New("operation ID is missing")
	case r.Device == "":
		return errors.New("device is missing")
	case r.BackupRepository == "":
		return errors.New("backup repository is missing")
	case r.Volume.Namespace == "" || r.Volume.PVC == "":
		return errors.New("volume is missing")
	case r.RateLimit != 0 && r.RateLimit < MinRateLimit:
		return fmt.Errorf("rate limit is %d, want 0 for none, or %d or more", r.RateLimit, MinRateLimit)
	case (r.Backup == nil) == (r.Restore == nil):
		return errors.New("want exactly one of backup and restore")
	case r.Backup != nil:
		return r.Backup.check()
	case r.Restore.SnapshotID == "":
		return errors.New("snapshot ID to restore is missing")
	case r.Restore.InPlace != nil:
		return r.Restore.checkInPlace()
	}
	return nil
}

func (r Restore) checkInPlace() error {
	p := r.InPlace
	switch {
	case r.DiskImage:
		return errors.New("a disk in a file is not restored in place")
	case p.Mode != inplace.SameVolume && p.Mode != inplace.AnyVolume:
		return fmt.Errorf("mode of the restore in place is %q, want %s or %s", p.Mode, inplace.SameVolume, inplace.AnyVolume)
	case p.Claim == "" || p.Driver == "" || p.VolumeHandle == "":
		return errors.New("claim, driver or volume handle of the live volume is missing")
	case !isPercent(p.Audit):
		return fmt.Errorf("audit is %q, want a percentage", p.Audit)
	case (p.Metadata == nil) == (p.MetadataUnavailable == ""):
		return errors.New("want either a metadata service or the reason why there is none")
	case (p.Metadata == nil) != (p.VolumeSnapshot == ""):
		return errors.New("want a VolumeSnapshot with its metadata service, or neither")
	}
	return nil
}

func (b Backup) check() error {
	switch {
	case b.ParentSnapshot == "":
		return errors.New("parent snapshot is missing, want auto, none or an ID")
	case b.Capacity < 0:
		return fmt.Errorf("capacity is %d, want 0 or more", b.Capacity)
	case b.FullEvery < 0:
		return fmt.Errorf("fullEvery is %s, want 0 or more", b.FullEvery)
	case !isPercent(b.Audit):
		return fmt.Errorf("audit is %q, want a percentage", b.Audit)
	case b.Driver == "" || b.VolumeHandle == "" || b.SnapshotHandle == "":
		return errors.New("driver, volume handle or snapshot handle is missing")
	case b.SnapshotTime.IsZero():
		return errors.New("snapshot time is missing")
	case b.DiskFile != nil:
		return b.checkDiskFile()
	case b.VolumeSnapshot == "":
		return errors.New("VolumeSnapshot is missing")
	case (b.Metadata == nil) == (b.MetadataUnavailable == ""):
		return errors.New("want either a metadata service or the reason why there is none")
	}
	return nil
}

func (b Backup) checkDiskFile() error {
	f := b.DiskFile
	switch {
	case b.VolumeSnapshot != "" || b.Metadata != nil || b.MetadataUnavailable != "":
		return errors.New("want a VolumeSnapshot with its metadata service, or the file of a disk")
	case f.Instance == "" || f.Backup == "" || f.Volume == "":
		return errors.New("instance, backup or volume of the file of the disk is missing")
	case (f.Since == "") != (len(f.Full) > 0):
		return errors.New("want either the instant that the file of the disk has the changes since, or the reasons why it has the whole disk")
	}
	return nil
}

func isPercent(text string) bool {
	_, err := policy.ParsePercent(text)
	return err == nil
}

// Encode renders the report in at most MaxReportBytes. It shortens long texts for people.
func (r Report) Encode() (string, error) {
	r.Version = Version
	for {
		b, err := json.Marshal(r)
		if err != nil {
			return "", fmt.Errorf("encode task report: %w", err)
		}
		if len(b) <= MaxReportBytes {
			return string(b), nil
		}
		if len(r.Error) <= 64 && len(r.Detail) <= 64 {
			return "", fmt.Errorf("encode task report: %d bytes, want at most %d", len(b), MaxReportBytes)
		}
		r.Error, r.Detail = shorten(r.Error), shorten(r.Detail)
	}
}

// DecodeReport parses a report. An error says that the text is none: the kubelet, the
// runtime and the kernel write into the same place.
func DecodeReport(s string) (Report, error) {
	var r Report
	if err := decodeStrict(s, &r); err != nil {
		return Report{}, fmt.Errorf("decode task report: %w", err)
	}
	if r.Version != Version {
		return Report{}, fmt.Errorf("decode task report: version is %d, want %d", r.Version, Version)
	}
	if !r.Class.Known() {
		return Report{}, fmt.Errorf("decode task report: class of the error is %q", r.Class)
	}
	for _, n := range []int64{
		r.VolumeSize, r.BytesRead, r.BytesUploaded, r.BytesWritten, r.IncompressibleBytes, r.BytesFound, r.ZeroBytes, r.MetadataBytes,
		r.ChunksWritten, r.ChunksInherited, int64(r.Duration), r.Resumptions, r.ChunksAudited, r.BytesAudited,
		int64(r.Steps.Open), int64(r.Steps.Plan), int64(r.Steps.Move), int64(r.Steps.Save),
	} {
		if n < 0 || n > maxCount {
			return Report{}, fmt.Errorf("decode task report: a count is %d, want 0 to %d", n, int64(maxCount))
		}
	}
	return r, nil
}

// shorten halves a long text.
func shorten(s string) string {
	const limit = 64
	if len(s) <= limit {
		return s
	}
	// The cut may leave a part of a character, which is dropped.
	return strings.ToValidUTF8(s[:max(limit, len(s)/2)-len("…")], "") + "…"
}

func decodeStrict(s string, into any) error {
	d := json.NewDecoder(bytes.NewReader([]byte(s)))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("text after the document")
	}
	return nil
}
