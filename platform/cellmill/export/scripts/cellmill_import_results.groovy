/*
 * Adds to the open image the cells that segment_project found inside its annotations.
 *
 * For all images: Automate > Project scripts, open this script, then Run > Run for project, choose all images.
 * Objects that are in the image already are left as they are, so running it twice adds nothing.
 */
import groovy.json.JsonSlurper
import qupath.lib.io.PathIO

def entry = getProjectEntry()
if (entry == null) {
    println 'cellmill: open an image of the project first.'
    return
}
def folder = new File(buildFilePath(PROJECT_BASE_DIR, 'cellmill', 'results', entry.getID()))
def indexFile = new File(folder, 'index.json')
if (!indexFile.isFile()) {
    println "cellmill: there are no results for ${entry.getImageName()}."
    return
}
def present = getCurrentHierarchy().getAllObjects(false).collect { it.getID().toString() } as Set
int added = 0
new JsonSlurper().parse(indexFile, 'UTF-8').parts.each { name ->
    def objects = PathIO.readObjects(new File(folder, name)).findAll { !present.contains(it.getID().toString()) }
    addObjects(objects)
    added += objects.size()
}
fireHierarchyUpdate()
println "cellmill: added ${added} cells to ${entry.getImageName()}."
