package task

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/blockmover/blockmover/internal/chain"
	"github.com/blockmover/blockmover/internal/fuzztest"
	"github.com/blockmover/blockmover/internal/inplace"
	"github.com/blockmover/blockmover/internal/repository"
)

func backupRequest() Request {
	return Request{
		Version: Version, Namespace: "velero", Name: "blockmover-1", OperationID: "du-1.2",
		Device: "/dev/blockmover", BackupRepository: "app-default-kopia",
		Volume: repository.VolumeKey{Namespace: "app", PVC: "data"}, RateLimit: 50 << 20,
		Backup: &Backup{
			ParentSnapshot: "auto", FullEvery: 168 * time.Hour, Audit: "1%", Failed: []string{"du-0.2"},
			Driver: "csi.example.com", VolumeHandle: "volume-1", SnapshotHandle: "snapshot-1",
			SnapshotTime:   time.Date(2026, 8, 1, 12, 0, 0, 0, time.UTC),
			VolumeSnapshot: "blockmover-uid",
			Metadata: &MetadataService{
				Address: "metadata.driver:6443", CACert: []byte("PEM"), TokenPath: "/var/run/secrets/blockmover/token",
			},
		},
	}
}

func restoreRequest() Request {
	r := backupRequest()
	r.Backup, r.Restore = nil, &Restore{SnapshotID: "k1", Resume: true}
	return r
}

func inPlaceRequest() Request {
	r := restoreRequest()
	r.Restore.InPlace = &InPlace{Claim: "app/data", Mode: inplace.SameVolume, Driver: "csi.example.com", VolumeHandle: "volume-1", Audit: "1%", MetadataUnavailable: "no class"}
	return r
}

// diskRequest is for a disk of a VM.
func diskRequest() Request {
	r := backupRequest()
	r.Backup.VolumeSnapshot, r.Backup.Metadata = "", nil
	r.Backup.DiskFile = &DiskFile{Instance: "vm", Backup: "backup", Volume: "disk", Since: "uid/checkpoint"}
	return r
}

func TestRequestRoundTrip(t *testing.T) {
	withoutMetadata := backupRequest()
	withoutMetadata.Backup.Metadata, withoutMetadata.Backup.MetadataUnavailable = nil, "no SnapshotMetadataService csi.example.com"
	wholeDisk := diskRequest()
	wholeDisk.Backup.DiskFile.Since, wholeDisk.Backup.DiskFile.Full = "", []chain.Step{{Reason: chain.NoParent, Detail: "no checkpoint"}}
	for name, want := range map[string]Request{
		"disk of a VM": diskRequest(), "whole disk of a VM": wholeDisk,
		"backup": backupRequest(), "restore": restoreRequest(), "restore in place": inPlaceRequest(), "backup without metadata service": withoutMetadata,
	} {
		t.Run(name, func(t *testing.T) {
			text, err := want.Encode()
			if err != nil {
				t.Fatal(err)
			}
			got, err := DecodeRequest(text)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("request (-want +got):\n%s", diff)
			}
		})
	}
}

func TestEncodeSetsTheVersion(t *testing.T) {
	r := backupRequest()
	r.Version = 0
	text, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := DecodeRequest(text); err != nil || got.Version != Version {
		t.Errorf("version is %d, %v, want %d", got.Version, err, Version)
	}
}

// Both sides refuse each missing field, and each combination that makes no sense.
func TestRequestCheck(t *testing.T) {
	for name, spoil := range map[string]func(*Request){
		"no namespace":         func(r *Request) { r.Namespace = "" },
		"no name":              func(r *Request) { r.Name = "" },
		"no operation ID":      func(r *Request) { r.OperationID = "" },
		"no device":            func(r *Request) { r.Device = "" },
		"no backup repository": func(r *Request) { r.BackupRepository = "" },
		"no volume namespace":  func(r *Request) { r.Volume.Namespace = "" },
		"no PVC":               func(r *Request) { r.Volume.PVC = "" },
		"negative rate limit":  func(r *Request) { r.RateLimit = -1 },
		"rate limit too low":   func(r *Request) { r.RateLimit = MinRateLimit - 1 },
		"neither":              func(r *Request) { r.Backup = nil },
		"both":                 func(r *Request) { r.Restore = &Restore{SnapshotID: "k1"} },
		"restore of nothing":   func(r *Request) { r.Backup, r.Restore = nil, &Restore{} },
		"in place as off":      func(r *Request) { *r = inPlaceRequest(); r.Restore.InPlace.Mode = inplace.Off },
		"in place of nothing":  func(r *Request) { *r = inPlaceRequest(); r.Restore.InPlace.VolumeHandle = "" },
		"in place, no audit":   func(r *Request) { *r = inPlaceRequest(); r.Restore.InPlace.Audit = "" },
		"in place, no why":     func(r *Request) { *r = inPlaceRequest(); r.Restore.InPlace.MetadataUnavailable = "" },
		"in place, no service": func(r *Request) { *r = inPlaceRequest(); r.Restore.InPlace.VolumeSnapshot = "blockmover-uid-1" },
		"in place in a file":   func(r *Request) { *r = inPlaceRequest(); r.Restore.DiskImage = true },
		"no parent choice":     func(r *Request) { r.Backup.ParentSnapshot = "" },
		"no audit":             func(r *Request) { r.Backup.Audit = "" },
		"audit is no share":    func(r *Request) { r.Backup.Audit = "1" },
		"negative fullEvery":   func(r *Request) { r.Backup.FullEvery = -time.Second },
		"no driver":            func(r *Request) { r.Backup.Driver = "" },
		"no volume handle":     func(r *Request) { r.Backup.VolumeHandle = "" },
		"no snapshot handle":   func(r *Request) { r.Backup.SnapshotHandle = "" },
		"no VolumeSnapshot":    func(r *Request) { r.Backup.VolumeSnapshot = "" },
		"no snapshot time":     func(r *Request) { r.Backup.SnapshotTime = time.Time{} },
		"no metadata, no why":  func(r *Request) { r.Backup.Metadata = nil },
		"metadata and why not": func(r *Request) { r.Backup.MetadataUnavailable = "none" },
		"snapshot and disk":    func(r *Request) { r.Backup.DiskFile = diskRequest().Backup.DiskFile },
		"disk without VM":      func(r *Request) { *r = diskRequest(); r.Backup.DiskFile.Instance = "" },
		"disk without backup":  func(r *Request) { *r = diskRequest(); r.Backup.DiskFile.Backup = "" },
		"disk without volume":  func(r *Request) { *r = diskRequest(); r.Backup.DiskFile.Volume = "" },
		"disk without base":    func(r *Request) { *r = diskRequest(); r.Backup.DiskFile.Since = "" },
		"whole disk with base": func(r *Request) {
			*r = diskRequest()
			r.Backup.DiskFile.Full = []chain.Step{{Reason: chain.ForcedFull, Detail: "asked for"}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := backupRequest()
			spoil(&r)
			if text, err := r.Encode(); err == nil {
				t.Errorf("encoded: %s", text)
			}
			text, err := json.Marshal(r)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := DecodeRequest(string(text)); err == nil {
				t.Errorf("decoded: %s", text)
			}
		})
	}
}

func TestStrictDecode(t *testing.T) {
	request, err := backupRequest().Encode()
	if err != nil {
		t.Fatal(err)
	}
	report, err := Report{SnapshotID: "k1"}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(string) string{
		"empty":         func(string) string { return "" },
		"cut off":       func(s string) string { return s[:len(s)-1] },
		"text after it": func(s string) string { return s + "{}" },
		"unknown field": func(s string) string { return strings.Replace(s, "{", `{"new":1,`, 1) },
		"other version": func(s string) string { return strings.Replace(s, `"version":1`, `"version":2`, 1) },
		"no version":    func(s string) string { return strings.Replace(s, `"version":1,`, "", 1) },
		"another type":  func(s string) string { return strings.Replace(s, `"version":1`, `"version":"1"`, 1) },
		"an array":      func(s string) string { return "[" + s + "]" },
	} {
		if _, err := DecodeRequest(change(request)); err == nil {
			t.Errorf("request, %s: no error", name)
		}
		if _, err := DecodeReport(change(report)); err == nil {
			t.Errorf("report, %s: no error", name)
		}
	}
	if _, err := DecodeRequest(request + "\n"); err != nil {
		t.Errorf("request and a newline: %v", err)
	}
}

func TestReportRoundTrip(t *testing.T) {
	want := Report{
		Version: Version, SnapshotID: "k1", Kind: repository.Incremental, Reason: "DeltaFailed", Detail: "rpc error",
		Parent: "k0", VolumeSize: 1 << 40, BytesRead: 3, BytesUploaded: 2, BytesWritten: 1, ZeroBytes: 4, MetadataBytes: 5,
		ChunksWritten: 6, ChunksInherited: 7, Duration: 3 * time.Second,
		Steps: Steps{Open: 1, Plan: 2, Move: 3, Save: 4},
	}
	text, err := want.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodeReport(text)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("report (-want +got):\n%s", diff)
	}
}

// The kubelet cuts off a long termination message, and a report that is cut off cannot be
// parsed. So Encode shortens the texts for people, and keeps the rest.
func TestReportFits(t *testing.T) {
	for name, long := range map[string]string{
		"plain":         strings.Repeat("x", 100_000),
		"escaped":       strings.Repeat("\x00\"<", 10_000),
		"of many bytes": strings.Repeat("é漢", 10_000),
	} {
		t.Run(name, func(t *testing.T) {
			text, err := Report{Error: long, Detail: long, SnapshotID: "k1", BytesRead: 42}.Encode()
			if err != nil {
				t.Fatal(err)
			}
			if len(text) > MaxReportBytes {
				t.Errorf("%d bytes, want at most %d", len(text), MaxReportBytes)
			}
			got, err := DecodeReport(text)
			if err != nil {
				t.Fatal(err)
			}
			if got.SnapshotID != "k1" || got.BytesRead != 42 {
				t.Errorf("report lost more than its texts: %+v", got)
			}
			for _, s := range []string{got.Error, got.Detail} {
				kept := strings.TrimSuffix(s, "…")
				if kept == s || kept == "" || !strings.HasPrefix(long, kept) || !utf8.ValidString(s) {
					t.Errorf("text is %q, want a beginning of the original", s)
				}
			}
		})
	}
}

func TestReportThatCannotFit(t *testing.T) {
	if _, err := (Report{SnapshotID: repository.SnapshotID(strings.Repeat("k", MaxReportBytes))}).Encode(); err == nil {
		t.Error("no error for a report that does not fit without its texts")
	}
}

func FuzzDecodeRequest(f *testing.F) {
	for _, r := range []Request{backupRequest(), restoreRequest()} {
		text, err := r.Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var r Request
		var err error
		fuzztest.Document(t, len(text), func() { r, err = DecodeRequest(text) })
		if err != nil {
			return
		}
		again, err := r.Encode()
		if err != nil {
			t.Fatalf("a request that was decoded does not encode: %v", err)
		}
		got, err := DecodeRequest(again)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(r, got); diff != "" {
			t.Errorf("request (-first +second):\n%s", diff)
		}
	})
}

func TestCountsOfReport(t *testing.T) {
	for _, field := range []string{
		"volumeSize", "bytesRead", "bytesUploaded", "bytesWritten", "incompressibleBytes", "bytesFound", "zeroBytes", "metadataBytes",
		"chunksWritten", "chunksInherited", "duration", "resumptions", "chunksAudited", "bytesAudited",
	} {
		for _, n := range []string{"-1", "9223372036854775807"} {
			if _, err := DecodeReport(`{"version":1,"` + field + `":` + n + `}`); err == nil || !strings.Contains(err.Error(), "a count is "+n) {
				t.Errorf("%s is %s: %v", field, n, err)
			}
		}
	}
}

// FuzzDecodeReport: the kubelet, the runtime and whoever can write the termination message of a pod write what is read here.
func FuzzDecodeReport(f *testing.F) {
	f.Add(`{"version":1,"snapshotID":"k1","kind":"Full","reasons":["NoParent"],"volumeSize":42}`)
	f.Add(`{"version":1,"error":"pod was evicted","class":"outage"}`)
	f.Fuzz(func(t *testing.T, text string) {
		var r Report
		var err error
		fuzztest.Document(t, len(text), func() { r, err = DecodeReport(text) })
		if err != nil {
			return
		}
		for _, n := range []int64{r.VolumeSize, r.BytesRead, r.BytesUploaded, r.BytesWritten + r.ZeroBytes, r.BytesAudited, int64(r.Duration), int64(r.Steps.Move)} {
			if n < 0 {
				t.Fatalf("a count is %d, and counters only increase", n)
			}
		}
		again, err := r.Encode()
		if err != nil {
			return // it does not fit into a termination message
		}
		if len(again) > MaxReportBytes {
			t.Fatalf("%d bytes, want at most %d", len(again), MaxReportBytes)
		}
		got, err := DecodeReport(again)
		if err != nil {
			t.Fatal(err)
		}
		// Long texts were cut.
		got.Error, got.Detail, r.Error, r.Detail = "", "", "", ""
		if diff := cmp.Diff(r, got, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("report (-first +second):\n%s", diff)
		}
	})
}

func FuzzReport(f *testing.F) {
	f.Add("", "")
	f.Add(strings.Repeat("long ", 2000), "\xff\xfe")
	f.Fuzz(func(t *testing.T, failure, detail string) {
		text, err := Report{Error: failure, Detail: detail}.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if len(text) > MaxReportBytes {
			t.Fatalf("%d bytes, want at most %d", len(text), MaxReportBytes)
		}
		got, err := DecodeReport(text)
		if err != nil {
			t.Fatal(err)
		}
		if (got.Error == "") != (failure == "") {
			t.Errorf("error is %q, was %q: a report changed sides", got.Error, failure)
		}
	})
}
