package snapshotmetadata

import (
	"io"
	"testing"

	"github.com/kubernetes-csi/external-snapshot-metadata/pkg/api"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/cbt"
	"github.com/blockmover/blockmover/internal/fuzztest"
)

// FuzzReceive takes any bytes for two messages of a stream. What is passed on is what the messages say.
func FuzzReceive(f *testing.F) {
	message := func(m *api.GetMetadataDeltaResponse) []byte {
		text, err := proto.Marshal(m)
		require.NoError(f, err)
		return text
	}
	f.Add(message(&api.GetMetadataDeltaResponse{
		BlockMetadataType: api.BlockMetadataType_FIXED_LENGTH, VolumeCapacityBytes: 1 << 20,
		BlockMetadata: []*api.BlockMetadata{{ByteOffset: 4096, SizeBytes: 4096}, {ByteOffset: 1 << 62, SizeBytes: -1}},
	}), message(&api.GetMetadataDeltaResponse{BlockMetadataType: api.BlockMetadataType_VARIABLE_LENGTH, VolumeCapacityBytes: 1 << 20}))
	f.Add(message(&api.GetMetadataDeltaResponse{BlockMetadataType: 7}), []byte{0xff})
	f.Fuzz(func(t *testing.T, first, second []byte) {
		texts := [][]byte{first, second}
		var read []*api.GetMetadataDeltaResponse
		next := func() (*api.GetMetadataDeltaResponse, error) {
			if len(read) == len(texts) {
				return nil, io.EOF
			}
			m := &api.GetMetadataDeltaResponse{}
			err := proto.Unmarshal(texts[len(read)], m)
			read = append(read, m)
			return m, err
		}
		var got []cbt.Batch
		var err error
		fuzztest.Document(t, len(first)+len(second), func() {
			err = receive(next, func(b cbt.Batch) error {
				got = append(got, b)
				return nil
			})
		})
		if err == nil {
			require.Len(t, got, len(texts))
		}
		for i, b := range got {
			m := read[i]
			require.Equal(t, m.GetVolumeCapacityBytes(), b.Capacity)
			require.Equal(t, m.GetBlockMetadataType() == api.BlockMetadataType_FIXED_LENGTH, b.Fixed)
			require.Len(t, b.Blocks, len(m.GetBlockMetadata()))
			for n, e := range m.GetBlockMetadata() {
				require.Equal(t, block.Extent{Offset: e.GetByteOffset(), Length: e.GetSizeBytes()}, b.Blocks[n])
			}
		}
	})
}
