/*
 * Adds to the open image what cellmill wrote for it: areas as locked annotations, cells as detections.
 *
 * For all images: Automate > Project scripts, open this script, then Run > Run for project, choose all images.
 * Without a window: QuPath script scripts/cellmill_import_objects.groovy -p project.qpproj -s
 *
 * Objects that are in the image already are left as they are, so running it twice adds nothing.
 */
import groovy.json.JsonSlurper
import qupath.lib.io.PathIO

def entry = getProjectEntry()
if (entry == null) {
    println 'cellmill: open an image of the project first.'
    return
}
def folder = new File(buildFilePath(PROJECT_BASE_DIR, 'objects', entry.getID()))
def indexFile = new File(folder, 'index.json')
if (!indexFile.isFile()) {
    println "cellmill: nothing was exported for ${entry.getImageName()}."
    return
}
def present = getCurrentHierarchy().getAllObjects(false).collect { it.getID().toString() } as Set
int added = 0
new JsonSlurper().parse(indexFile, 'UTF-8').parts.each { name ->
    def objects = PathIO.readObjects(new File(folder, name)).findAll { !present.contains(it.getID().toString()) }
    addObjects(objects)
    added += objects.size()
}
setImageType('BRIGHTFIELD_H_E')
fireHierarchyUpdate()
println "cellmill: added ${added} objects to ${entry.getImageName()}."
