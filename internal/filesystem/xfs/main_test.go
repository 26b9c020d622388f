package xfs_test

import (
	"os"
	"testing"

	"github.com/blockmover/blockmover/internal/filesystem/filesystemtest"
)

func TestMain(m *testing.M) { os.Exit(filesystemtest.Run(m)) }
