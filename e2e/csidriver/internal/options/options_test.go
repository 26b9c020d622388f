package options_test

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/blockmover/blockmover/e2e/csidriver/internal/options"
)

func load(t *testing.T, content string) (options.Options, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "options.json")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return options.Load(path)
}

func TestMissingFileMeansDefaults(t *testing.T) {
	loaded, err := options.Load(filepath.Join(t.TempDir(), "options.json"))
	if err != nil || !reflect.DeepEqual(loaded, options.Defaults()) {
		t.Errorf("got %+v, %v", loaded, err)
	}
}

// TestOptionsAreDocumented: e2e/README.md has every option.
func TestOptionsAreDocumented(t *testing.T) {
	text, err := os.ReadFile("../../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, field := range reflect.VisibleFields(reflect.TypeFor[options.Options]()) {
		key, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		if !strings.Contains(string(text), "`"+key+"`") {
			t.Errorf("e2e/README.md does not have the option %s", key)
		}
	}
}

func TestKeys(t *testing.T) {
	loaded, err := load(t, `{
		"blockType": "VARIABLE", "blockSize": 4096, "requireBaseSnapshotForDelta": false,
		"breakStreamAfterMessages": 3, "refuseDelta": true, "refuseAllocated": true, "omitChangedBlocks": 0.25,
		"overrunTail": true, "wrongBlocks": "overlap", "snapshotDelay": "5s", "createSnapshotError": "no",
		"groupSnapshotError": "never", "maxSnapshotsPerVolume": 2, "omitRestoreSize": true,
		"refuseMemberDelete": false, "shrinkTo": {"vol-1": 1048576}
	}`)
	want := options.Options{
		BlockType: options.Variable, BlockSize: 4096, BreakStreamAfterMessages: 3, RefuseDelta: true, RefuseAllocated: true,
		OmitChangedBlocks: 0.25, OverrunTail: true, WrongBlocks: options.Overlap, SnapshotDelay: options.Duration(5 * time.Second),
		CreateSnapshotError: "no", GroupSnapshotError: "never", MaxSnapshotsPerVolume: 2, OmitRestoreSize: true,
		RefuseMemberDelete: false, ShrinkTo: map[string]int64{"vol-1": 1 << 20},
	}
	if err != nil || !reflect.DeepEqual(loaded, want) {
		t.Errorf("got %+v, %v\nwant %+v", loaded, err, want)
	}
}

func TestRefused(t *testing.T) {
	for content, reason := range map[string]string{
		``:                                  "EOF",
		`{"blocksize_": 1}`:                 "unknown field",
		`{} {}`:                             "more than one",
		`{"blockType": "fixed"}`:            "neither",
		`{"blockSize": 5000}`:               "power of two",
		`{"blockSize": 256}`:                "power of two",
		`{"breakStreamAfterMessages": -1}`:  "negative",
		`{"omitChangedBlocks": -1}`:         "negative",
		`{"omitChangedBlocks": 1.5}`:        "neither",
		`{"wrongBlocks": "all"}`:            "none of",
		`{"snapshotDelay": "5"}`:            "unit",
		`{"snapshotDelay": "-5s"}`:          "negative",
		`{"maxSnapshotsPerVolume": -1}`:     "negative",
		`{"shrinkTo": {"vol-1": 0}}`:        "not a size",
		`{"requireBaseSnapshotForDelta":1}`: "bool",
	} {
		if _, err := load(t, content); err == nil || !strings.Contains(err.Error(), reason) {
			t.Errorf("%s: got error %v, want one with %q", content, err, reason)
		}
	}
}
