package rehome

import (
	"encoding/json"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/blockmover/blockmover/internal/fuzztest"
	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/phase"
)

// FuzzRetained: a pair that is made again from a note says what the note says.
func FuzzRetained(f *testing.F) {
	f.Add(`{"name":"n","retain":"auto","namespace":"app","pvc":"data","location":"l","backup":"b","backupUID":"u","driver":"d","volumeHandle":"v",
"snapshotHandle":"s","snapshotTime":"2026-03-01T12:00:00.123456789+02:00","class":"c","secretName":"sn","secretNamespace":"sns"}`)
	f.Add(`{"name":"n","retain":"always","pvc":"data","backup":"b","driver":"d","volumeHandle":"v","snapshotHandle":"s","snapshotTime":"9999-12-31T23:59:59-12:00"}`)
	f.Add(`null`)
	f.Fuzz(func(t *testing.T, note string) {
		var k *Retained
		fuzztest.Document(t, len(note), func() { k = ParseRetained(note) })
		if k == nil || k.check() != nil {
			return
		}
		pair := k.plan("velero")
		require.Equal(t, snapshotv1.VolumeSnapshotContentDelete, pair.Spec.DeletionPolicy)
		read, err := readRetained(pair)
		require.NoError(t, err)
		require.True(t, read.SnapshotTime.Equal(k.SnapshotTime))
		read.SnapshotTime, read.BackupGone = k.SnapshotTime, k.BackupGone
		if k.SecretName == "" {
			read.SecretNamespace = k.SecretNamespace
		}
		require.Equal(t, *k, read)
		text, err := json.Marshal(read)
		require.NoError(t, err)
		require.NotNil(t, ParseRetained(string(text)))
	})
}

// FuzzFacts takes any texts for the annotations of a pair. What they say is broken, or makes sense.
func FuzzFacts(f *testing.F) {
	f.Add("1048576", "1073741824", "2026-03-01T12:00:00.5Z")
	f.Add("-1", "", "2026-03-01T12:00:00+23:59")
	f.Add("9223372036854775808", "1e3", "now")
	f.Fuzz(func(t *testing.T, size, capacity, at string) {
		pair := &snapshotv1.VolumeSnapshotContent{ObjectMeta: metav1.ObjectMeta{Name: "pair", Annotations: map[string]string{
			identity.AnnotationVolumeSize: size, identity.AnnotationCapacity: capacity, identity.AnnotationSnapshotTime: at,
		}}}
		facts, err := describe(pair, &snapshotv1.VolumeSnapshot{})
		if err != nil {
			require.ErrorIs(t, err, phase.ErrBroken)
			return
		}
		require.GreaterOrEqual(t, min(facts.Size, facts.Capacity), int64(0))
		again := &snapshotv1.VolumeSnapshotContent{}
		writeTime(again, facts.SnapshotTime)
		got, err := readTime(again)
		require.NoError(t, err)
		require.True(t, got.Equal(facts.SnapshotTime), "%s is %s", facts.SnapshotTime, got.Format(time.RFC3339Nano))
	})
}
